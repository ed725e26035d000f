"""An answer's events: begun before there is a status line, or taken whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from deployments.contracts import Delta
from deployments.errors import EngineFailed
from serve_app.pipeline import Answered, AnswerEvent, Restarted, SourcesChosen


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """The text of an answer and its last event."""

    text: str
    end: Answered


async def whole_answer(events: AsyncGenerator[AnswerEvent]) -> WholeAnswer:
    """Take an answer to its end, and close it however that comes."""
    pieces: list[str] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                pieces.append(event.text)
            elif isinstance(event, Restarted):
                pieces.clear()
            elif isinstance(event, Answered):
                return WholeAnswer("".join(pieces), event)
    raise EngineFailed("the answer broke off before its end")


async def begun(events: AsyncGenerator[AnswerEvent]) -> SourcesChosen:
    """Await the first event, so that whatever fails before it still has its own status."""
    first = await anext(events)
    assert isinstance(first, SourcesChosen), "an answer begins with its sources"
    return first
