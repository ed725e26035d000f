"""What callers see when a stage dies, stalls, is poisoned or overloaded, on real Ray Serve."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines import num_running, until_none_runs
from tests.serving import StartApp, until_covered
from tests.sse import events_of

ENGINES = {
    "embedder": {"engine": "tests.engines:WordHashEncoder"},
    "reranker": {"method": "cross_encoder", "engine": "tests.engines:SleepyScorer"},
    "generator": {"engine": "tests.engines:Counter"},
    "http": {"max_concurrent_requests": 8, "retry_after_s": 2},
    # Reranking is the only stage that is late on purpose.
    "lane": {"default_collection": "notes", "rerank_timeout_s": 1},
}

# The vectors of questions are kept, so that only one that was never asked tells whether the embedder works.
ATTEMPTS = itertools.count()


@pytest.fixture(scope="module")
def url(start_app: StartApp) -> str:
    url = start_app(ENGINES)
    documents = [{"id": f"d{n}", "text": f"document number {n} speaks of topic{n}"} for n in range(5)]
    taken = httpx.post(f"{url}/v1/documents", json={"collection": "notes", "documents": documents}, timeout=60)
    assert len(taken.json()["indexed"]) == 5
    until_covered(url, "notes")
    return url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as client:
        yield client


async def search(client: httpx.AsyncClient, query: str, **options: Any) -> httpx.Response:
    return await client.post("/v1/search", json={"query": query, "rerank": False} | options)


async def embed(client: httpx.AsyncClient, text: str) -> httpx.Response:
    return await client.post("/v1/embeddings", json={"input": text, "timeout_s": 20})


async def recovered(client: httpx.AsyncClient, query: str) -> httpx.Response:
    """Repeat a search, which words alone answer meanwhile, until embedding takes part in it again.

    Replacing a replica takes a few seconds.
    """
    for _ in range(120):
        response = await search(client, f"{query} attempt{next(ATTEMPTS)}")
        assert response.status_code == 200, response.text
        if response.json()["degraded"] == []:
            return response
        assert response.json()["degraded"] == ["embed"]
        await asyncio.sleep(0.5)
    raise AssertionError(f"the stage did not come back: {response.text}")


def first_of(response: httpx.Response) -> str:
    """The id of the document that was found first."""
    found: str = response.json()["results"][0]["document_id"]
    return found


@pytest.mark.parametrize("mode", ["hybrid", "vector"])
async def test_a_poisoned_query_is_answered_by_its_words_and_spoils_none_beside_it(
    client: httpx.AsyncClient, mode: str
) -> None:
    good = [search(client, f"topic1 {mode}{n}", mode=mode) for n in range(5)]
    *answers, poisoned = await asyncio.gather(*good, search(client, "POISON topic1", mode=mode))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert [answer.json()["degraded"] for answer in answers] == [[]] * 5
    assert poisoned.status_code == 200
    assert poisoned.json()["degraded"] == ["embed"]
    assert {first_of(answer) for answer in (*answers, poisoned)} == {"d1"}


async def test_a_poisoned_text_to_embed_fails_alone_and_says_nothing_of_the_engine(client: httpx.AsyncClient) -> None:
    *embedded, failed = await asyncio.gather(*(embed(client, f"text{n}") for n in range(5)), embed(client, "POISON"))
    assert [answer.status_code for answer in embedded] == [200] * 5
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "engine_failed"
    assert "Traceback" not in failed.text
    assert "poison" not in failed.text.lower()


async def test_a_dead_engine_fails_its_callers_at_once_and_its_replica_is_replaced(client: httpx.AsyncClient) -> None:
    before = await search(client, "topic2 asked before")
    assert before.json()["degraded"] == []
    dead = await embed(client, "DIE")
    assert dead.status_code == 503
    assert int(dead.headers["retry-after"]) >= 1
    by_words = await search(client, "DIE topic2")
    assert by_words.status_code == 200
    assert by_words.json()["degraded"] == ["embed"]
    assert first_of(by_words) == "d2"
    again = await search(client, "topic2 asked before")
    assert (again.json()["degraded"], again.json()["results"]) == ([], before.json()["results"])
    assert first_of(await recovered(client, "topic2")) == "d2"


async def test_a_killed_replica_is_replaced_and_no_request_is_left_hanging(client: httpx.AsyncClient) -> None:
    waiting = [search(client, f"SLEEP topic1 waiting{n}", timeout_s=20) for n in range(4)]
    *answers, killed = await asyncio.gather(*waiting, embed(client, "EXIT"))
    assert killed.status_code in (503, 504)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [first_of(answer) for answer in answers] == ["d1"] * 4
    assert first_of(await recovered(client, "topic3")) == "d3"


async def test_a_stage_that_takes_too_long_is_left_out_and_the_lane_goes_on(client: httpx.AsyncClient) -> None:
    late = await search(client, "sleep 3 topic1", rerank=True)
    assert late.status_code == 200
    assert late.json()["degraded"] == ["rerank"]
    assert first_of(late) == "d1"
    assert (await search(client, "topic1")).json()["degraded"] == []
    # Waits until the engine is done, so that the next test finds it idle.
    awaited = await client.post("/v1/rerank", json={"query": "topic1", "documents": ["a text"]})
    assert awaited.status_code == 200


async def test_a_failing_reranker_degrades_the_answer_and_says_so(client: httpx.AsyncClient) -> None:
    found = await search(client, "fail topic4", rerank=True)
    assert found.json()["degraded"] == ["rerank"]
    assert first_of(found) == "d4"


async def test_an_answer_without_vectors_has_the_sources_that_words_find(client: httpx.AsyncClient) -> None:
    body = {"question": "count 7 POISON topic4", "stream": True, "rerank": False}
    async with client.stream("POST", "/v1/answers", json=body) as response:
        (first, sources), *_, (last, end) = [event async for event in events_of(response)]
    assert (first, last) == ("sources", "done")
    assert sources["sources"][0]["document_id"] == "d4"
    assert end["degraded"] == ["embed"]


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
    async with client.stream("POST", "/v1/answers", json=body) as response:
        assert response.status_code == 200
        events = [event async for event in events_of(response)]
    assert [name for name, _ in events] == ["sources", "token", "token", "token", "error"]
    assert "secret" not in str(events)


async def test_without_a_fallback_an_engine_that_fails_fails_the_answer(client: httpx.AsyncClient) -> None:
    failed = await client.post("/v1/answers", json={"question": "fail 3"})
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "engine_failed"
    assert "secret" not in failed.text


async def test_a_client_that_leaves_stops_its_generation(client: httpx.AsyncClient, running_file: Path) -> None:
    async with client.stream("POST", "/v1/answers", json={"question": "for ever", "stream": True}) as response:
        async for name, _ in events_of(response):
            if name == "token":
                break
        assert num_running(running_file) == 1
    await until_none_runs(running_file)


async def test_an_answer_past_its_deadline_stops_its_generation(client: httpx.AsyncClient, running_file: Path) -> None:
    late = await client.post("/v1/answers", json={"question": "for ever", "timeout_s": 1})
    assert late.status_code == 504
    await until_none_runs(running_file)
