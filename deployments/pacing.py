"""How often the streams of one replica may speak: what a stream has to say before its turn travels as one message.

A message between two replicas costs about the same with one token in it as with ten. With one message for every token
the two processes at its ends, each a single event loop, are busy long before the engine is: many streams pay for
messages what they could have had as tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from pydantic import Field

from deployments.contracts import Delta, GenerationEvent
from deployments.section import Section


class PaceConfig(Section):
    """Bounds of what a replica sends while it streams. The first piece and the end of an answer never wait."""

    max_messages_per_s: float = Field(
        default=1000.0,
        gt=0,
        description="Of all streams of a replica together: with n of them, text that comes within n ÷ this many "
        "seconds of the last piece travels with the next one.",
    )
    max_hold_ms: float = Field(
        default=50.0,
        ge=0,
        description="The longest that text is held for this, however many streams there are; 0: never.",
    )


class Pacer:
    """Shares the pace among the streams of one event loop."""

    def __init__(self, config: PaceConfig) -> None:
        self._config = config
        self._num_streams = 0

    async def pace(self, events: AsyncGenerator[GenerationEvent]) -> AsyncGenerator[GenerationEvent]:
        """`events`, with the text of neighbouring deltas joined where they come faster than they may travel.

        An error of `events` is raised after the text before it. Closing this closes `events`, whichever task it is in.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting()
        # The engine is listened to all the time, so that its end is seen at once and nothing of it is held there.
        listening = asyncio.create_task(_listen(events, waiting))
        self._num_streams += 1
        next_at = loop.time()
        try:
            while not waiting.ended.is_set():
                await waiting.something.wait()
                if loop.time() < next_at:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(next_at):
                            await waiting.ended.wait()
                for event in waiting.take():
                    yield event
                next_at = loop.time() + self._interval_s()
            for event in waiting.take():
                yield event
            await listening
        finally:
            self._num_streams -= 1
            listening.cancel()
            # Until the engine has been told; what it still says to that is nobody's concern.
            await asyncio.gather(listening, return_exceptions=True)

    def _interval_s(self) -> float:
        return min(self._num_streams / self._config.max_messages_per_s, self._config.max_hold_ms / 1000)


class _Waiting:
    """What has come and was not sent yet."""

    def __init__(self) -> None:
        self.something = asyncio.Event()
        self.ended = asyncio.Event()
        self._texts: list[str] = []
        self._others: list[GenerationEvent] = []

    def add(self, event: GenerationEvent) -> None:
        if isinstance(event, Delta):
            self._texts.append(event.text)
        else:
            self._others.append(event)
        self.something.set()

    def end(self) -> None:
        self.ended.set()
        self.something.set()

    def take(self) -> list[GenerationEvent]:
        """Everything so far: its text in one piece, then what ended it."""
        taken: list[GenerationEvent] = [Delta("".join(self._texts))] if self._texts else []
        taken += self._others
        self._texts.clear()
        self._others.clear()
        self.something.clear()
        return taken


async def _listen(events: AsyncGenerator[GenerationEvent], waiting: _Waiting) -> None:
    try:
        async with aclosing(events):
            async for event in events:
                waiting.add(event)
    finally:
        waiting.end()
