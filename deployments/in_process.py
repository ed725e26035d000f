"""A stage inside its caller's process: the same contract without a call to another process.

For stages whose work is done by threads of their own or in microseconds, where another process would cost more than
it brings: a call between two replicas takes about 2 ms of CPU time and copies all that it carries. A stage that gains
from requests travelling together keeps its hop and is called like a Ray Serve handle; the others are called directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

from deployments.contracts import Call, GenerateRequest, GenerationEvent, Outcome, RerankRequest, Timed, Vector
from deployments.tally import DropTally
from deployments.telemetry import Reading


class InProcessResponse:
    """Awaitable and cancellable, like a DeploymentResponse: giving up the await does not stop the work."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task

    def __await__(self) -> Any:
        return asyncio.shield(self._task).__await__()

    def cancel(self) -> None:
        self._task.cancel()


class InProcessStream:
    """An async iterator that can be cancelled, like a DeploymentResponseGenerator."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events
        self._closing: asyncio.Task[None] | None = None
        self.cancelled = False

    def __aiter__(self) -> InProcessStream:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._events)

    def cancel(self) -> None:
        """Close the stage's generator, which may have ended long ago."""
        self.cancelled = True
        close = getattr(self._events, "aclose", None)
        if close is not None and self._closing is None:
            # The loop keeps no task alive that nobody holds.
            self._closing = asyncio.ensure_future(close())


class _Method:
    """A method by its name: what it is, the stage knows when it is called."""

    def __init__(self, stage: Any, name: str, stream: bool) -> None:
        self._stage = stage
        self._name = name
        self._stream = stream

    def remote(self, *args: Any, **kwargs: Any) -> InProcessResponse | InProcessStream:
        method = getattr(self._stage, self._name)
        if self._stream:
            return InProcessStream(method(*args, **kwargs))
        return InProcessResponse(asyncio.ensure_future(method(*args, **kwargs)))


class InProcessHandle:
    """`handle.method.remote(...)` on a stage in this process."""

    def __init__(self, stage: Any, stream: bool = False) -> None:
        self._stage = stage
        self._stream = stream

    def options(self, **options: Any) -> InProcessHandle:
        """The handle with other options, of which only `stream` means anything without a process in between."""
        return InProcessHandle(self._stage, options.get("stream", self._stream))

    def check_health(self) -> None:
        """Raise where the stage says that it will never work again."""
        check = getattr(self._stage, "check_health", None)
        if check is not None:
            check()

    def __getattr__(self, name: str) -> _Method:
        return _Method(self._stage, name, self._stream)


class _RerankStage(Protocol):
    async def rerank(self, calls: Sequence[Call[RerankRequest]]) -> list[Outcome[Vector]]: ...


class InProcessReranker:
    """A Reranker that this process runs itself."""

    def __init__(self, stage: _RerankStage) -> None:
        self._stage = stage
        self._dropped = DropTally("rerank")

    async def rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
        """The scores; raises the stage's error, DeadlineExceeded after `budget_s` seconds."""
        (outcome,) = await self._stage.rerank([Call(request, budget_s)])
        self._dropped.add_failure(outcome.error)
        return outcome.unwrap()

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the way to this stage."""
        yield from self._dropped.read()


class _AnswerStage(Protocol):
    async def answer(self, calls: Sequence[Call[GenerateRequest]]) -> list[Outcome[tuple[GenerationEvent, ...]]]: ...


class InProcessAnswerer:
    """A Generator that this process runs itself, and whose engine answers within milliseconds."""

    def __init__(self, stage: _AnswerStage) -> None:
        self._stage = stage
        self._dropped = DropTally("generate")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        """The generator's events, all of them once it is done. Closing the iterator before that gives the answer up."""
        (outcome,) = await self._stage.answer([Call(request, request.budget_s)])
        self._dropped.add_failure(outcome.error)
        for event in outcome.unwrap().value:
            yield event

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of the way to this stage."""
        yield from self._dropped.read()
