"""Sending one request and noting what became of it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp
import orjson

from benchmarks.connections import Connections
from benchmarks.experiment import Target
from benchmarks.records import ErrorKind, Sample, StageTiming, error_kind_of
from benchmarks.sse import Event, EventDecoder

MAX_ERROR_CHARACTERS = 300


class RequestFailed(Exception):
    """A request that got no usable answer; turned into a sample's error, never raised to the caller."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class _Exchange:
    """What is known of a request so far, kept outside the call so that a failure does not lose it."""

    status: int | None = None
    token_times_s: list[float] = field(default_factory=list)
    timings: tuple[StageTiming, ...] = ()
    degraded: tuple[str, ...] = ()


class RequestClient:
    """Sends the requests of one experiment. What goes wrong with one stands in its sample; `send` never raises."""

    def __init__(self, connections: Connections, target: Target, *, timeout_s: float, stream: bool = False) -> None:
        self._connections = connections
        self._target = target
        self._timeout_s = timeout_s
        self._stream = stream
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if stream else "application/json",
        }

    async def send(self, body: bytes, intended_start_s: float, now_s: Callable[[], float]) -> Sample:
        """Send `body` and wait for the whole answer, at most the timeout; `now_s` is the load's clock."""
        exchange = _Exchange()
        kind: ErrorKind | None = None
        message = ""
        start_s = now_s()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(body, exchange, now_s)
        except RequestFailed as failure:
            kind, message = failure.kind, str(failure)
        except TimeoutError:
            kind, message = "timeout", f"no whole answer within {self._timeout_s:g} s"
        except aiohttp.ClientError as error:
            kind, message = "connection", str(error) or type(error).__name__
        end_s = now_s()
        tokens = exchange.token_times_s
        return Sample(
            intended_start_s=intended_start_s,
            start_s=start_s,
            end_s=end_s,
            status=exchange.status,
            error_kind=kind,
            error=message[:MAX_ERROR_CHARACTERS],
            ttft_s=tokens[0] - intended_start_s if tokens else None,
            inter_token_s=tuple(later - earlier for earlier, later in pairwise(tokens)),
            timings=exchange.timings,
            degraded=exchange.degraded,
        )

    async def _exchange(self, body: bytes, exchange: _Exchange, now_s: Callable[[], float]) -> None:
        method, path = self._target.method, self._target.path
        async with self._connections.request(method, path, headers=self._headers, body=body) as response:
            exchange.status = response.status
            if kind := error_kind_of(response.status):
                raise RequestFailed(kind, _error_message(response.status, await response.read()))
            if self._stream:
                answer = await _read_stream(response, exchange, now_s)
            else:
                answer = _parse_object(await response.read())
        _take_answer(answer, exchange)


async def _read_stream(
    response: aiohttp.ClientResponse, exchange: _Exchange, now_s: Callable[[], float]
) -> dict[str, Any]:
    """Read events to the stream's end and return the data of `done`."""
    decoder = EventDecoder()
    done: Event | None = None
    async for chunk in response.content.iter_any():
        arrived_s = now_s()
        for event in decoder.feed(chunk):
            if event.name == "error":
                raise RequestFailed("stream", event.data)
            if event.name == "token":
                exchange.token_times_s.append(arrived_s)
            elif event.name == "done":
                done = event
    if done is None:
        raise RequestFailed("stream", "the stream ended without a `done` event")
    return _parse_object(done.data.encode())


def _take_answer(answer: dict[str, Any], exchange: _Exchange) -> None:
    """Keep the timings and the degraded stages. Both may be absent: other servers than raglane have none."""
    try:
        timings = tuple(StageTiming.from_json(timing) for timing in answer.get("timings") or ())
        degraded = tuple(str(stage) for stage in answer.get("degraded") or ())
    except (KeyError, TypeError, ValueError) as error:
        raise RequestFailed("malformed", f"can't read the answer's timings or degraded stages: {error!r}") from error
    if not all(math.isfinite(timing.total_s) for timing in timings):
        raise RequestFailed("malformed", "a stage's time is not a finite number")
    exchange.timings, exchange.degraded = timings, degraded


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except ValueError as error:
        raise RequestFailed("malformed", f"the answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise RequestFailed("malformed", "the answer is not a JSON object")
    return answer


def _error_message(status: int, body: bytes) -> str:
    """Return the server's own message where the body has one in `{"error": {"message"}}`, else its first words."""
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:MAX_ERROR_CHARACTERS].decode('utf-8', 'replace')}"
