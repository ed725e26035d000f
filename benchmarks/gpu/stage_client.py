"""Asks raglane's generate stage as raglane's ingress does, and keeps what a benchmark needs of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.gpu.exchange import Exchange, streamed
from benchmarks.gpu.loop import Clock
from deployments.contracts import Delta, Generated, GenerateRequest, Generates, GenerationOptions, Usage
from deployments.errors import RaglaneError

BUDGET_S = 120.0


class StageClient:
    """Sends chat messages to a generate stage. A request that fails has an error in its sample."""

    def __init__(self, stage: Generates, max_tokens: int, temperature: float) -> None:
        self._stage = stage
        self._options = GenerationOptions(max_tokens=max_tokens, temperature=temperature)
        self._num_sent = 0

    async def generate(self, messages: Sequence[Mapping[str, str]], now_s: Clock) -> Exchange:
        """One whole answer; its times count from the load's start."""
        self._num_sent += 1
        request = GenerateRequest(
            question="",
            sources=(),
            messages=tuple(messages),
            options=self._options,
            request_id=f"stage-{self._num_sent}",
            budget_s=BUDGET_S,
        )
        start_s = now_s()
        pieces_s: list[float] = []
        usage = Usage()
        error: RaglaneError | None = None
        try:
            async for event in self._stage.generate(request):
                match event:
                    case Delta():
                        pieces_s.append(now_s())
                    case Generated():
                        usage = event.usage
        except RaglaneError as failure:
            error = failure
        sample = streamed(start_s, pieces_s, now_s(), "stream" if error else None, str(error or ""))
        return Exchange(sample, usage.prompt_tokens, usage.completion_tokens)
