"""The generate stage of one answer: the generator, and the fallback when it fails or has no time left."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from msgspec.structs import replace

from deployments.contracts import Delta, Generated, GenerateRequest, Generates
from deployments.errors import DeadlineExceeded, EngineFailed, StageError
from serve_app.retrieval import CLIENTS_FAULT
from serve_app.trace import Deadline, Trace

_RESERVED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class FellBack:
    """The generator failed for this `reason`; what follows is the fallback's answer, and what came before is void."""

    reason: str


WritingEvent = Delta | FellBack | Generated


class Writer:
    """Any number of `Delta`, then one `Generated`; where the generator fails, `FellBack` and the fallback's answer.

    A stream whose first words are out is not begun anew: its failure is raised.
    """

    def __init__(
        self, generator: Generates, fallback: Generates | None, reserve_s: float, first_word_timeout_s: float
    ) -> None:
        self._generator = generator
        self._fallback = fallback
        self._reserve_s = reserve_s
        self._first_word_timeout_s = first_word_timeout_s if fallback is not None else math.inf

    async def write(
        self, request: GenerateRequest, stream: bool, deadline: Deadline, trace: Trace
    ) -> AsyncGenerator[WritingEvent]:
        """Raises the generator's error where there is no fallback, and whatever only the client can mend."""
        started = time.perf_counter()
        said_something = False
        try:
            async with aclosing(self._first(request, stream, deadline)) as events:
                async for event in events:
                    said_something = said_something or isinstance(event, Delta)
                    if isinstance(event, Generated):
                        trace.add("generate", time.perf_counter() - started, event.timing)
                    yield event
            return
        except CLIENTS_FAULT:
            raise
        except StageError as error:
            if self._fallback is None or (stream and said_something):
                raise
            reason = error.reason
        yield FellBack(reason)
        started = time.perf_counter()
        async with aclosing(_whole(self._fallback, replace(request, budget_s=deadline.remaining_s()))) as events:
            async for event in events:
                if isinstance(event, Generated):
                    trace.add("generate", time.perf_counter() - started, event.timing, "fallback")
                yield event

    async def _first(
        self, request: GenerateRequest, stream: bool, deadline: Deadline
    ) -> AsyncGenerator[Delta | Generated]:
        """The generator's answer, given up while there is still time for the fallback's."""
        left_s = deadline.remaining_s()
        reserved_s = 0.0 if self._fallback is None else min(self._reserve_s, _RESERVED_SHARE * left_s)
        # A stream can fall back before its first word only, so that only this word has to come earlier.
        budget_s = left_s if stream else left_s - reserved_s
        async with aclosing(_whole(self._generator, replace(request, budget_s=budget_s))) as events:
            try:
                async with asyncio.timeout(min(left_s - reserved_s, self._first_word_timeout_s)):
                    first = await anext(events)
            except TimeoutError:
                raise DeadlineExceeded("the generator had not begun its answer in time; raise timeout_s") from None
            yield first
            async for event in events:
                yield event


async def _whole(generator: Generates, request: GenerateRequest) -> AsyncGenerator[Delta | Generated]:
    """A generation to its end; raises EngineFailed where it breaks off before."""
    async with aclosing(generator.generate(request)) as events:
        async for event in events:
            yield event
            if isinstance(event, Generated):
                return
    raise EngineFailed("the generator broke off before the end of its answer")
