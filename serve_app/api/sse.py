"""Server-sent events: their framing, and a response that always ends the work behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from deployments.errors import DeadlineExceeded
from serve_app.api.errors import STATUS_TABLE, error_body, failure_of, log_failure
from serve_app.api.observation import note_failure
from serve_app.api.wire import to_json
from serve_app.trace import Deadline

ErrorFrame = Callable[[dict[str, Any]], bytes]

# How long a client may go on reading what was written before the deadline.
_READING_S = 10.0


def event_frame(name: str, data: Any) -> bytes:
    """One named event."""
    return b"event: " + name.encode() + b"\ndata: " + to_json(data) + b"\n\n"


def data_frame(data: Any) -> bytes:
    """One event without a name, as OpenAI streams them."""
    return b"data: " + to_json(data) + b"\n\n"


class EventStream(Response):
    """Sends frames as they come; closes `frames` and then the `source` they are made from, however the stream ends.

    An error after the first byte can't change the status any more: it becomes a last frame, made by `error_frame`. A
    client that has stopped reading is let go some seconds after the deadline, by which `source` ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncGenerator[bytes], source: AsyncGenerator[Any], error_frame: ErrorFrame, deadline: Deadline
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._source = source
        self._error_frame = error_frame
        self._deadline = deadline
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._frames):
            try:
                async with asyncio.timeout(self._deadline.remaining_s() + _READING_S):
                    await self._send_all(scope, send)
            except TimeoutError:
                note_failure(scope, STATUS_TABLE[DeadlineExceeded][0])

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._frames_or_error(scope)) as frames:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _frames_or_error(self, scope: Scope) -> AsyncGenerator[bytes]:
        try:
            async for frame in self._frames:
                yield frame
        except Exception as error:  # noqa: BLE001 - whatever it is, the client learns that its stream is not whole
            failure = failure_of(error, scope)
            log_failure(error, failure, scope)
            note_failure(scope, failure.status)
            yield self._error_frame(error_body(failure, scope))
