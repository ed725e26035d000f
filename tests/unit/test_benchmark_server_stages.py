"""What the server itself counts per stage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.connections import Connections
from benchmarks.server_stages import StageCounters, difference, fetch
from tests.http_server import listening


@asynccontextmanager
async def answering(body: str, status: int = 200) -> AsyncIterator[Connections]:
    async def stages(request: Request) -> Response:
        return Response(body, status)

    async with listening(Starlette(routes=[Route("/v1/stages", stages)])) as url, Connections(url) as connections:
        yield connections


async def test_counters_are_read_by_stage_and_the_rest_is_left_alone() -> None:
    body = (
        '{"stages": [{"stage": "embed", "count": 7, "seconds_total": 1.5, "queue_s": 0.1},'
        ' {"stage": "rerank", "count": 2, "seconds_total": 3}], "bottleneck": null}'
    )
    async with answering(body) as connections:
        assert await fetch(connections) == {"embed": StageCounters(7, 1.5), "rerank": StageCounters(2, 3.0)}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 404),
        ("busy", 503),
        ("stages", 200),
        ("[]", 200),
        ('{"stages": [{"stage": "embed"}]}', 200),
        ('{"stages": [{"stage": "embed", "count": 1, "seconds_total": NaN}]}', 200),
        ('{"stages": [{"stage": "embed", "count": Infinity, "seconds_total": 1}]}', 200),
    ],
)
async def test_a_server_without_counters_that_can_be_read_is_measured_without(body: str, status: int) -> None:
    async with answering(body, status) as connections:
        assert await fetch(connections) is None


async def test_a_server_that_is_not_there_has_no_counters() -> None:
    async with Connections("http://127.0.0.1:1") as connections:
        assert await fetch(connections) is None


def test_the_difference_is_what_came_in_between() -> None:
    before = {"embed": StageCounters(7, 1.5)}
    after = {"embed": StageCounters(9, 1.75), "rerank": StageCounters(2, 3.0)}
    assert difference(before, after) == [
        {"stage": "embed", "count": 2, "seconds_total": 0.25},
        {"stage": "rerank", "count": 2, "seconds_total": 3.0},
    ]


def test_there_is_no_difference_to_nothing_or_to_a_server_that_was_started_anew() -> None:
    counters = {"embed": StageCounters(7, 1.5)}
    assert difference(None, counters) is None
    assert difference(counters, None) is None
    assert difference(counters, {"embed": StageCounters(1, 0.1)}) is None
