"""What became of each request, told to whoever counts or traces: the outermost view, refusals at the door included."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.tally import RequestOutcome
from serve_app.api.services import request_id_of, services_of
from serve_app.trace import Trace

# What was asked for under no path of ours: as many names as anybody likes to invent.
UNKNOWN_ENDPOINT = "unknown"

_BY_STATUS: dict[int, RequestOutcome] = {429: "shed", 499: "disconnected", 504: "deadline"}


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that is over. `endpoint` is the route's path, `path` the URL's; `status` is None where no response
    began. `seconds` run from the request's head to the last byte of the response; `started_at_ns` counts since 1970,
    and `started_s` is the same moment on `time.perf_counter`, which traces use.
    """

    endpoint: str
    path: str
    method: str
    status: int | None
    outcome: RequestOutcome
    request_id: str
    started_at_ns: int
    started_s: float
    seconds: float
    trace: Trace | None
    headers: Headers


Observer = Callable[[RequestRecord], None]


def begin_trace(request: Request) -> Trace:
    """The trace of this request, counted with the others' and shown to observers when the request is over."""
    trace = Trace(services_of(request).tally)
    request.scope.setdefault("state", {})["trace"] = trace
    return trace


def note_failure(scope: Scope, status: int) -> None:
    """A response whose status line is out has failed, as if with this status."""
    scope.setdefault("state", {})["failure_status"] = status


class Observation:
    """Tells the observers of every request that is over. Health checks are nobody's requests."""

    def __init__(
        self, app: ASGIApp, observers: tuple[Observer, ...], unobserved: tuple[str, ...], paths: frozenset[str]
    ) -> None:
        """`paths` are the routes', for requests that are refused before one is found for them."""
        self._app = app
        self._paths = paths
        self._observers = observers
        self._unobserved = unobserved

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at_ns, started_s = time.time_ns(), time.perf_counter()
        status: int | None = None
        whole = False

        async def send_and_note(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            endpoint = self._endpoint(scope)
            if not endpoint.startswith(self._unobserved):
                state = scope.get("state", {})
                trace = state.get("trace")
                record = RequestRecord(
                    endpoint=endpoint,
                    path=_path(scope),
                    method=scope["method"],
                    status=status,
                    outcome=_outcome(state.get("failure_status", status), whole, trace),
                    request_id=request_id_of(scope),
                    started_at_ns=started_at_ns,
                    started_s=started_s,
                    seconds=time.perf_counter() - started_s,
                    trace=trace,
                    headers=Headers(scope=scope),
                )
                for observe in self._observers:
                    observe(record)

    def _endpoint(self, scope: Scope) -> str:
        if "route" in scope:
            return str(getattr(scope["route"], "path", UNKNOWN_ENDPOINT))
        path = _path(scope)
        return path if path in self._paths else UNKNOWN_ENDPOINT


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _outcome(status: int | None, whole: bool, trace: Trace | None) -> RequestOutcome:
    if status is not None and status in _BY_STATUS:
        return _BY_STATUS[status]
    if status is not None and status >= 400:
        return "server_error" if status >= 500 else "client_error"
    if status is None or not whole:
        return "disconnected"
    return "degraded" if trace is not None and trace.degraded else "ok"
