"""`python -m benchmarks.gpu.bare_engine`: vLLM's engine alone on given prompts. A step of benchmarks.gpu.lane, and one
side of benchmarks.vllm_stream.

The engine gets token ids, made beforehand, and is asked in its own process: no server, no HTTP, no other model. That
is the most that any server in front of it could reach.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import result_file
from benchmarks.gpu.exchange import Exchange, streamed
from benchmarks.gpu.lane_plan import GenerationPlan
from benchmarks.gpu.loop import Clock, closed_loop

Messages = Sequence[Mapping[str, str]]


class BareEngine:
    """One vLLM engine with the plan's model and arguments."""

    def __init__(self, plan: GenerationPlan) -> None:
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._plan = plan
        self._tokenizer: Any = AutoTokenizer.from_pretrained(plan.generator)
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=plan.generator, **plan.engine_args))
        self._num_sent = 0

    def encode(self, messages: Messages) -> list[int]:
        """The prompt's token ids, as vLLM's chat endpoint makes them."""
        prompt = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        ids: list[int] = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return ids

    async def generate(self, prompt: Sequence[int], now_s: Clock) -> Exchange:
        """One whole answer; its times count from the load's start."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=self._plan.max_tokens,
            temperature=self._plan.temperature,
            output_kind=RequestOutputKind.DELTA,
        )
        self._num_sent += 1
        start_s = now_s()
        pieces_s: list[float] = []
        num_tokens = 0
        request = {"prompt_token_ids": list(prompt)}
        async for output in self._engine.generate(request, params, request_id=f"bare-{self._num_sent}"):
            answer = output.outputs[0]
            num_tokens += len(answer.token_ids)
            # Half a character is a token, but nothing that a server could send.
            if answer.text:
                pieces_s.append(now_s())
        sample = streamed(start_s, pieces_s, now_s())
        return Exchange(sample, prompt_tokens=len(prompt), completion_tokens=num_tokens)

    def close(self) -> None:
        """Stop the engine's process."""
        self._engine.shutdown()


async def run(plan: GenerationPlan, prompts: Sequence[Sequence[Messages]]) -> list[list[Exchange]]:
    """Run the plan's loads, the warm-up first, each with its own prompts."""
    engine = BareEngine(plan)
    try:
        encoded = [[engine.encode(messages) for messages in load] for load in prompts]
        return [
            await closed_loop(jobs, load.clients, engine.generate)
            for load, jobs in zip(plan.loads, encoded, strict=True)
        ]
    finally:
        engine.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bare_engine", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="messages by load and request")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    # The event loop of vLLM's own server, and of Ray's actors.
    import uvloop

    plan = GenerationPlan.model_validate_json(options.plan.read_bytes())
    prompts = json.loads(options.prompts.read_bytes())["loads"]
    started = time.perf_counter()
    loads = uvloop.run(run(plan, prompts))
    print(f"the engine alone took {time.perf_counter() - started:.0f} s, start and warm-up included", file=sys.stderr)
    result_file.write(options.out, {"loads": [[exchange.to_json() for exchange in load] for load in loads]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
