"""What callers see when a stage dies, stalls, is poisoned or overloaded, on real Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import StartApp

ENGINES = {
    "embedder": {"engine": "tests.engines:WordHashEncoder"},
    "reranker": {"method": "cross_encoder", "engine": "tests.engines:SleepyScorer"},
    "generator": {"engine": "tests.engines:Counter"},
    "http": {"max_concurrent_requests": 8, "retry_after_s": 2},
    "lane": {"default_collection": "notes", "default_timeout_s": 20},
}


@pytest.fixture(scope="module")
def url(start_app: StartApp) -> str:
    url = start_app(ENGINES)
    documents = [{"id": f"d{n}", "text": f"document number {n} speaks of topic{n}"} for n in range(5)]
    taken = httpx.post(f"{url}/v1/documents", json={"collection": "notes", "documents": documents}, timeout=60)
    assert len(taken.json()["indexed"]) == 5
    return url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as client:
        yield client


async def search(client: httpx.AsyncClient, query: str, **options: Any) -> httpx.Response:
    return await client.post("/v1/search", json={"query": query, "rerank": False} | options)


async def served(client: httpx.AsyncClient, query: str) -> httpx.Response:
    """Repeat a search until it is served; replacing a replica takes a few seconds."""
    for _ in range(120):
        response = await search(client, query)
        if response.status_code == 200:
            return response
        await asyncio.sleep(0.5)
    raise AssertionError(f"the stage did not come back: {response.status_code} {response.text}")


async def test_a_poisoned_query_fails_alone_among_concurrent_ones(client: httpx.AsyncClient) -> None:
    good, bad = [search(client, "topic1") for _ in range(5)], search(client, "POISON topic1")
    *answers, failed = await asyncio.gather(*good, bad)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "engine_failed"
    assert "Traceback" not in failed.text
    assert "poison" not in failed.text.lower()


async def test_a_dead_engine_fails_its_callers_at_once_and_its_replica_is_replaced(client: httpx.AsyncClient) -> None:
    dead = await search(client, "DIE")
    assert dead.status_code == 503
    assert int(dead.headers["retry-after"]) >= 1
    assert (await served(client, "topic2")).json()["results"][0]["document_id"] == "d2"


async def test_a_killed_replica_is_replaced_and_no_request_is_left_hanging(client: httpx.AsyncClient) -> None:
    waiting = [search(client, "SLEEP topic1", timeout_s=20) for _ in range(4)]
    *answers, killed = await asyncio.gather(*waiting, search(client, "EXIT", timeout_s=20))
    assert killed.status_code in (503, 504)
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    assert (await served(client, "topic3")).json()["results"][0]["document_id"] == "d3"


async def test_a_request_past_its_deadline_gets_504_and_the_lane_goes_on(client: httpx.AsyncClient) -> None:
    late = await search(client, "sleep 3", rerank=True, timeout_s=0.5)
    assert late.status_code == 504
    assert late.json()["error"]["type"] == "deadline_exceeded"
    assert (await search(client, "topic1")).status_code == 200


async def test_a_failing_reranker_degrades_the_answer_and_says_so(client: httpx.AsyncClient) -> None:
    found = (await search(client, "fail topic4", rerank=True)).json()
    assert found["degraded"] == ["rerank"]
    assert found["results"][0]["document_id"] == "d4"


async def test_overload_is_refused_at_the_door_and_capacity_comes_back(client: httpx.AsyncClient) -> None:
    slow = [search(client, "sleep 1 topic1", rerank=True) for _ in range(30)]
    answers = await asyncio.gather(*slow)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "2"
    assert (await search(client, "topic1")).status_code == 200


async def test_an_engine_that_fails_mid_stream_ends_the_stream_with_an_error_event(client: httpx.AsyncClient) -> None:
    body = {"question": "fail 3", "stream": True}
    lines = []
    async with client.stream("POST", "/v1/answers", json=body) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines()]
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert events == ["sources", "token", "token", "token", "error"]
    assert "secret" not in "".join(lines)


async def test_a_client_that_leaves_stops_its_generation(client: httpx.AsyncClient, running_file: Path) -> None:
    async with client.stream("POST", "/v1/answers", json={"question": "for ever", "stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and "text" in line:
                break
        assert running(running_file) == 1
    for _ in range(100):
        if running(running_file) == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the generator still counts for nobody")


async def test_an_answer_past_its_deadline_stops_its_generation(client: httpx.AsyncClient, running_file: Path) -> None:
    late = await client.post("/v1/answers", json={"question": "for ever", "timeout_s": 1})
    assert late.status_code == 504
    for _ in range(100):
        if running(running_file) == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the generator still counts for nobody")


def running(file: Path) -> int:
    return sum(int(line) for line in file.read_text().split()) if file.exists() else 0
