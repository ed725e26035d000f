"""What the server itself counts per stage, GET /v1/stages: the difference that one load makes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from benchmarks.connections import Connections

PATH = "/v1/stages"
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class StageCounters:
    """Calls of a stage and the seconds they took in all, since the server's start or during a load."""

    count: int
    seconds_total: float


async def fetch(connections: Connections) -> dict[str, StageCounters] | None:
    """Return the server's counters by stage; None from a server that has none, or whose answer can't be read.

    They are an extra: a benchmark goes on without them. A server that gathers them from metrics is a few seconds late.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async with connections.request("GET", PATH, headers={"Accept": "application/json"}, body=b"") as response:
                body = await response.read()
    except (TimeoutError, aiohttp.ClientError):
        return None
    return _parse(body) if response.status == 200 else None


def difference(
    before: Mapping[str, StageCounters] | None, after: Mapping[str, StageCounters] | None
) -> list[dict[str, str | int | float]] | None:
    """Return `stage`, `count` and `seconds_total` of what came in between, in the order of `after`.

    None where either is missing, or where a counter went back, as those of a server that was started anew do.
    """
    if before is None or after is None:
        return None
    nothing = StageCounters(0, 0.0)
    changes: list[dict[str, str | int | float]] = []
    for stage, counters in after.items():
        earlier = before.get(stage, nothing)
        count, seconds = counters.count - earlier.count, counters.seconds_total - earlier.seconds_total
        if count < 0 or seconds < 0:
            return None
        changes.append({"stage": stage, "count": count, "seconds_total": round(seconds, 6)})
    return changes


def _parse(body: bytes) -> dict[str, StageCounters] | None:
    counters: dict[str, StageCounters] = {}
    try:
        for stage in json.loads(body)["stages"]:
            name = str(stage["stage"])
            so_far = counters.get(name, StageCounters(0, 0.0))
            counters[name] = StageCounters(
                so_far.count + int(stage["count"]), so_far.seconds_total + float(stage["seconds_total"])
            )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return counters if all(math.isfinite(stage.seconds_total) for stage in counters.values()) else None
