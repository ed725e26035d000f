"""The door, as plain ASGI middleware: request id, admission, body limit, clients that leave, errors nobody foresaw."""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BodyTimeout, Overloaded, TooLarge
from serve_app.api.errors import error_response
from serve_app.api.services import HttpConfig

REQUEST_ID_HEADER = "x-request-id"
UNGUARDED_PATHS = ("/health/",)

_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})

_USABLE_REQUEST_ID = re.compile(r"[ -~]{1,128}")


class RequestId:
    """Gives every request an id, the client's own if it is usable, and returns it with the response."""

    def __init__(self, app: ASGIApp, echo: bool) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get(REQUEST_ID_HEADER, "").strip()
        request_id = wanted if _USABLE_REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id if self._echo else send)


class Admission:
    """Lets so many requests in at a time and refuses the others before they cost anything. Health is always let in."""

    def __init__(self, app: ASGIApp, config: HttpConfig) -> None:
        self._app = app
        self._config = config
        self._num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope).startswith(UNGUARDED_PATHS):
            await self._app(scope, receive, send)
            return
        if self._num_running >= self._config.max_concurrent_requests:
            full = Overloaded(
                f"{self._num_running} requests are being served already; try again in a moment",
                self._config.retry_after_s,
            )
            await error_response(full, scope)(scope, receive, send)
            return
        self._num_running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_running -= 1


class BodyLimit:
    """Refuses a body that is too large: at once where its length is declared, else as soon as it has grown so far.

    One that does not come in time is given up with BodyTimeout: its request takes up room meanwhile.
    """

    def __init__(self, app: ASGIApp, config: HttpConfig) -> None:
        self._app = app
        self._max_bytes = config.max_body_bytes
        self._timeout_s = config.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            await error_response(self._too_large(), scope)(scope, receive, send)
            return
        num_bytes = 0
        expires_at: float | None = asyncio.get_running_loop().time() + self._timeout_s
        if scope["method"] in _WITHOUT_BODY:
            expires_at = None

        async def receive_some() -> Message:
            nonlocal num_bytes, expires_at
            try:
                async with asyncio.timeout_at(expires_at):
                    message = await receive()
            except TimeoutError:
                raise BodyTimeout(f"the body has not come within {self._timeout_s:g} s; send it at once") from None
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                # What comes now, at some time, is that the client leaves.
                expires_at = None
            return message

        await self._app(scope, receive_some, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body has more than {self._max_bytes} bytes; split the request into smaller ones")


class CancelOnDisconnect:
    """Cancels the work for a client that has gone, so that no stage goes on for nobody, streaming or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        work = asyncio.current_task()
        assert work is not None
        gone = asyncio.Event()
        watcher: asyncio.Task[None] | None = None

        async def receive_body() -> Message:
            nonlocal watcher
            if watcher is not None:
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                leave()
                # Cancelled here: the reader of a body would call half of one a bad request.
                await asyncio.sleep(0)
            if not message.get("more_body", False):
                watcher = asyncio.create_task(watch())
            return message

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            leave()

        def leave() -> None:
            gone.set()
            work.cancel()

        async def send_while_watched(message: Message) -> None:
            # Servers report a disconnect after the last byte of a response, too: that one must cancel nothing.
            if watcher is not None and message["type"] == "http.response.body" and not message.get("more_body", False):
                watcher.cancel()
            await send(message)

        if scope["method"] in _WITHOUT_BODY:
            # Nobody will read a body, and so nobody would notice that the client has left.
            watcher = asyncio.create_task(watch())
        try:
            await self._app(scope, receive_body, send_while_watched)
        except asyncio.CancelledError:
            # The server's own cancellation comes first where both were asked for.
            if not gone.is_set() or work.cancelling() > 1:
                raise
        finally:
            if gone.is_set():
                work.uncancel()
            if watcher is not None:
                watcher.cancel()


class ErrorBoundary:
    """Answers an error that nothing else handled with a bare 500, as long as nothing was sent yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await error_response(error, scope)(scope, receive, send)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
