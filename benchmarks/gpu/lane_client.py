"""Asks the server under test for streamed answers and keeps what the benchmark needs of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

from benchmarks.connections import Connections
from benchmarks.gpu.exchange import Exchange
from benchmarks.gpu.loop import Clock
from benchmarks.records import ErrorKind, Sample, error_kind_of
from benchmarks.sse import EventDecoder

HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}
MAX_ERROR_CHARACTERS = 300


@dataclass(slots=True)
class _Stream:
    """What has come of one answer so far."""

    status: int | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    done: dict[str, Any] | None = None
    error_kind: ErrorKind | None = None
    error: str = ""


class LaneClient:
    """Sends questions to `/v1/answers`. A request that fails has an error in its sample; `ask` never raises."""

    def __init__(self, connections: Connections, options: dict[str, Any], timeout_s: float) -> None:
        self._connections = connections
        # An answer that was given before would spare the generator its work.
        self._options = options | {"stream": True, "cache": False}
        self._timeout_s = timeout_s

    async def ask(self, question: str, now_s: Clock) -> Exchange:
        """The whole exchange; its times count from the load's start."""
        stream = _Stream()
        start_s = now_s()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._read(question, stream, now_s)
        except TimeoutError:
            stream.error_kind, stream.error = "timeout", f"no whole answer within {self._timeout_s:g} s"
        except aiohttp.ClientError as error:
            stream.error_kind, stream.error = "connection", str(error) or type(error).__name__
        if stream.error_kind is None and stream.done is None:
            stream.error_kind, stream.error = "stream", "the stream ended without a `done` event"
        return _exchange(question, stream, start_s, now_s())

    async def _read(self, question: str, stream: _Stream, now_s: Clock) -> None:
        body = json.dumps(self._options | {"question": question}).encode()
        async with self._connections.request("POST", "/v1/answers", headers=HEADERS, body=body) as response:
            stream.status = response.status
            stream.error_kind = error_kind_of(response.status)
            if stream.error_kind is not None:
                stream.error = (await response.read()).decode("utf-8", "replace")
                return
            decoder = EventDecoder()
            async for chunk in response.content.iter_any():
                arrived_s = now_s()
                for event in decoder.feed(chunk):
                    match event.name:
                        case "sources":
                            stream.sources = json.loads(event.data)["sources"]
                        case "token":
                            stream.token_times_s.append(arrived_s)
                        case "done":
                            stream.done = json.loads(event.data)
                        case "error":
                            stream.error_kind, stream.error = "stream", event.data


def _exchange(question: str, stream: _Stream, start_s: float, end_s: float) -> Exchange:
    done = stream.done or {}
    tokens = stream.token_times_s
    sample = Sample(
        intended_start_s=start_s,
        start_s=start_s,
        end_s=end_s,
        status=stream.status,
        error_kind=stream.error_kind,
        error=stream.error[:MAX_ERROR_CHARACTERS],
        ttft_s=tokens[0] - start_s if tokens else None,
        inter_token_s=tuple(later - earlier for earlier, later in pairwise(tokens)),
        degraded=tuple(done.get("degraded") or ()),
    )
    usage = done.get("usage") or {}
    return Exchange(
        sample=sample,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        question=question,
        rows=done.get("timings") or (),
        sources=stream.sources,
    )
