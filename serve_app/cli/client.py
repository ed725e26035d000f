"""The HTTP client of a raglane server: its paths, its errors as `Failure`, its event stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from serve_app.cli.exits import ExitCode, Failure

CONNECT_TIMEOUT_S = 5.0
# The server ends requests at their deadline itself; this only catches a server that has stopped answering.
READ_TIMEOUT_S = 330.0
# Longer than the server waits for its stages (`http.readiness_timeout_s`), so that it can name the silent one.
READINESS_TIMEOUT_S = 10.0
RETRY_FOR_S = 120.0
MAX_RETRY_DELAY_S = 10.0
RETRIED_STATUS = (429, 503)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event, its data still text."""

    name: str
    data: str


class Client:
    """Speaks to one server. Whatever goes wrong is a Failure that says what to do."""

    def __init__(
        self, url: str, *, retry_for_s: float = RETRY_FOR_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = url.rstrip("/")
        self._retry_for_s = retry_for_s
        self._sleep = sleep
        try:
            # A proxy that the environment names is not for servers on this machine.
            is_local = urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
            self._http = httpx.Client(
                base_url=self.url,
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                trust_env=not is_local,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Failure(f"{url!r} is not a URL: {error}.", code=ExitCode.USAGE) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Whether the server is ready, and what each stage says; no stage is named if nothing answers."""
        try:
            response = self._http.get("/health/ready", timeout=READINESS_TIMEOUT_S)
        except httpx.HTTPError:
            return False, {}
        try:
            stages = response.json().get("stages") or {}
        except (ValueError, AttributeError):
            stages = {}
        return response.status_code == 200, {str(name): str(state) for name, state in stages.items()}

    def collections(self) -> list[Json]:
        return list(self._json("GET", "/v1/collections").get("collections") or [])

    def search(self, request: Json) -> Json:
        return self._json("POST", "/v1/search", request)

    def stages(self, window_s: float) -> Json:
        """The latency report, of the next `window_s` seconds or, for 0, since the start."""
        return self._json("GET", f"/v1/stages?window_s={window_s:g}")

    def answer(self, request: Json) -> Json:
        return self._json("POST", "/v1/answers", request)

    def stream_answer(self, request: Json) -> Iterator[ServerEvent]:
        """The events of an answer as they come: `sources`, any number of `token`, then `done` or `error`."""
        try:
            with self._http.stream("POST", "/v1/answers", json=request | {"stream": True}) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _failure(response)
                yield from parse_events(split_lines(response.iter_text()))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def index(self, collection: str, documents: list[Json]) -> Json:
        """Index one batch; waits and tries again while the server is too busy or not ready.

        The report of a batch of which every document was rejected is a report, too.
        """
        body = {"collection": collection, "documents": documents}
        give_up_at = time.monotonic() + self._retry_for_s
        attempt = 0
        while True:
            response = self._send("POST", "/v1/documents", body)
            delay_s = retry_delay_s(response.headers, attempt)
            if response.status_code not in RETRIED_STATUS or time.monotonic() + delay_s > give_up_at:
                return _all_rejected(response) or _checked(response)
            self._sleep(delay_s)
            attempt += 1

    def _json(self, method: str, path: str, body: Json | None = None) -> Json:
        return _checked(self._send(method, path, body))

    def _send(self, method: str, path: str, body: Json | None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> Failure:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Failure(
                f"no server answers at {self.url}.",
                "Start one with `raglane up`, or name another with --url.",
                ExitCode.SERVER_STATE,
            )
        if isinstance(error, httpx.TimeoutException):
            return Failure(f"{self.url} took too long to answer.", "See `raglane status`.")
        return Failure(
            f"the connection to {self.url} failed: {error or type(error).__name__}.", "See `raglane status`."
        )


class RequestTooLarge(Failure):
    """The server refuses the request for its size; a smaller one may pass."""


class RequestRefused(Failure):
    """The server refuses the request's content; sending it again is pointless."""


def _checked(response: httpx.Response) -> Json:
    if response.status_code >= 400:
        raise _failure(response)
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Failure(f"{response.request.url} did not answer with a JSON object.", "Is this a raglane server?")
    return body


def _all_rejected(response: httpx.Response) -> Json | None:
    """The report that a 422 carries where nothing is wrong with the request but every document in it."""
    if response.status_code != 422:
        return None
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) and isinstance(body.get("rejected"), list) else None


def _failure(response: httpx.Response) -> Failure:
    message, request_id = _error_of(response)
    message = f"{message} (HTTP {response.status_code}{f', request {request_id}' if request_id else ''})"
    match response.status_code:
        case 413:
            return RequestTooLarge(message)
        case 400 | 422:
            return RequestRefused(message)
        case 429:
            return Failure(message, "The server is busy; try again in a moment.")
        case 503:
            return Failure(message, "See `raglane status` for what is not ready.", ExitCode.NOT_READY)
        case _:
            return Failure(message)


def _error_of(response: httpx.Response) -> tuple[str, str]:
    try:
        error = response.json()["error"]
        return str(error["message"]), str(error.get("request_id") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return " ".join(response.text.split())[:200] or response.reason_phrase, ""


def retry_delay_s(headers: Mapping[str, str], attempt: int) -> float:
    """The server's Retry-After in seconds; without one, twice as long each time."""
    try:
        delay_s = float(headers["retry-after"])
    except (KeyError, ValueError):
        delay_s = 0.5 * 2.0 ** min(attempt, 10)
    return min(max(delay_s, 0.0), MAX_RETRY_DELAY_S)


def split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """The complete lines of a text that comes in chunks, ended by LF or CRLF and by nothing else.

    httpx's `iter_lines` also breaks at U+2028, U+0085 and the like, which may stand inside an event's data.
    """
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield line.removesuffix("\r")


def parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Server-sent events from their lines, after https://html.spec.whatwg.org/multipage/server-sent-events.html.

    An event without its closing empty line is dropped, as the specification says: it may be cut off.
    """
    name, data = "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield ServerEvent(name or "message", "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
