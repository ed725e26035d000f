"""How often the streams of one replica may speak: what an engine says before its stream's turn travels as one piece.

A piece costs about the same on its way out with one token in it as with ten. With one for every token the processes
that it passes, each a single event loop, are busy long before the engine is: many streams pay for messages what they
could have had as tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

from pydantic import Field

from deployments.section import Section

Piece = TypeVar("Piece")

MESSAGES_PER_S = 1000.0
CPU_MESSAGES_PER_S = 250.0


class PaceConfig(Section):
    """Bounds of what a replica sends while it streams. The first piece and the end of an answer never wait."""

    max_messages_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Of all streams of a replica together: with n of them, text that comes within n ÷ this many "
        "seconds of the last piece travels with the next one. null: 250 for an engine on the CPU, which messages "
        "take their time from, else 1000.",
    )
    max_hold_ms: float = Field(
        default=50.0,
        ge=0,
        description="The longest that text is held for this, however many streams there are; 0: never.",
    )


class Pacer:
    """Shares the pace among the streams of one event loop."""

    def __init__(self, config: PaceConfig, default_per_s: float = MESSAGES_PER_S) -> None:
        """`default_per_s` stands where the config leaves the number of messages open."""
        self._max_messages_per_s = config.max_messages_per_s or default_per_s
        self._max_hold_s = config.max_hold_ms / 1000
        self._num_streams = 0

    async def pace(self, pieces: AsyncGenerator[Piece], join: Callable[[Piece, Piece], Piece]) -> AsyncGenerator[Piece]:
        """`pieces`, with neighbours joined where they come faster than they may travel; the last waits for nothing.

        An error of `pieces` is raised after what came before it. Closing this closes `pieces`, whichever task it is in.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(join)
        # The engine is listened to all the time, so that its end is seen at once and nothing of it is held there.
        listening = asyncio.create_task(_listen(pieces, waiting))
        self._num_streams += 1
        next_at = loop.time()
        try:
            while not waiting.ended.is_set():
                await waiting.something.wait()
                if loop.time() < next_at:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(next_at):
                            await waiting.ended.wait()
                for piece in waiting.take():
                    yield piece
                next_at = loop.time() + self._interval_s()
            for piece in waiting.take():
                yield piece
            await listening
        finally:
            self._num_streams -= 1
            listening.cancel()
            # Until the engine has been told; what it still says to that is nobody's concern.
            await asyncio.gather(listening, return_exceptions=True)

    def _interval_s(self) -> float:
        return min(self._num_streams / self._max_messages_per_s, self._max_hold_s)


class _Waiting(Generic[Piece]):
    """What has come and was not sent yet."""

    def __init__(self, join: Callable[[Piece, Piece], Piece]) -> None:
        self.something = asyncio.Event()
        self.ended = asyncio.Event()
        self._join = join
        self._joined: list[Piece] = []

    def add(self, piece: Piece) -> None:
        self._joined = [self._join(self._joined[0], piece)] if self._joined else [piece]
        self.something.set()

    def end(self) -> None:
        self.ended.set()
        self.something.set()

    def take(self) -> list[Piece]:
        """Everything so far in one piece, if there is anything."""
        taken, self._joined = self._joined, []
        self.something.clear()
        return taken


async def _listen(pieces: AsyncGenerator[Piece], waiting: _Waiting[Piece]) -> None:
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                waiting.add(piece)
    finally:
        waiting.end()
