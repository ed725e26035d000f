"""POST /v1/search."""

from __future__ import annotations

import httpx
import pytest

from deployments.errors import EngineFailed, IndexMismatch
from tests.api import FakeServices


async def test_a_search_returns_passages_by_descending_score(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey from nectar", "k": 3})
    assert response.status_code == 200
    found = response.json()
    scores = [result["score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    best = found["results"][0]
    del best["score"]
    assert best == {
        "id": "bees:0",
        "document_id": "bees",
        "text": "Bees make honey from nectar.",
        "title": "Bees",
        "source": "bees.txt",
        "metadata": {"year": 2010},
    }
    assert found["degraded"] == []
    assert found["request_id"] == response.headers["x-request-id"]


async def test_a_search_tells_where_its_time_went_twice_and_alike(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "mode": "vector"})
    timings = response.json()["timings"]
    assert [row["stage"] for row in timings] == ["parse", "rewrite", "embed", "search", "search", "rerank"]
    assert [row["branch"] for row in timings] == ["", "", "", "vector", "fuse", ""]
    described = [f'{row["stage"]};desc="{row["branch"]}"' if row["branch"] else row["stage"] for row in timings]
    durations = [f"dur={row['total_s'] * 1000:.2f}" for row in timings]
    header = ", ".join(";".join(pair) for pair in zip(described, durations, strict=True))
    assert response.headers["server-timing"] == header


async def test_reranking_can_be_left_out(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "rerank": False, "k": 2})
    assert fakes.reranker.requests == []
    assert len(response.json()["results"]) == 2
    assert "rerank" not in [row["stage"] for row in response.json()["timings"]]


async def test_a_reranker_that_fails_is_left_out_and_named(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    fakes.reranker.faults.error = EngineFailed("broken")
    response = await client.post("/v1/search", json={"query": "honey"})
    assert response.status_code == 200
    assert response.json()["degraded"] == ["rerank"]
    assert response.json()["results"][0]["id"] == "bees:0"


async def test_a_filter_restricts_the_results(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "filter": {"year": {"gte": 2020}}})
    assert [result["document_id"] for result in response.json()["results"]] == ["notes/iron"]


async def test_the_default_collection_is_searched_unless_another_is_named(client: httpx.AsyncClient) -> None:
    await client.post("/v1/collections", json={"name": "empty"})
    default = await client.post("/v1/search", json={"query": "honey"})
    empty = await client.post("/v1/search", json={"query": "honey", "collection": "empty"})
    assert default.json()["results"]
    assert empty.json()["results"] == []


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [("vector", {"vector"}), ("text", {"text"}), ("hybrid", {"vector", "text"}), (None, {"vector", "text"})],
)
async def test_a_search_is_by_meaning_by_words_or_both(
    fakes: FakeServices, client: httpx.AsyncClient, mode: str | None, kinds: set[str]
) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "mode": mode})
    assert response.json()["results"][0]["id"] == "bees:0"
    assert {request.kind for request in fakes.retriever.requests} == kinds


async def test_filters_may_stand_in_the_query(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "title:Iron what is there of honey?"})
    assert [result["document_id"] for result in response.json()["results"]] == ["notes/iron"]
    assert fakes.embedder.requests[0].texts[0] == "what is there of honey?"


async def test_a_field_that_no_document_has_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "filter": {"yaer": 2020}})
    assert response.status_code == 400
    assert "'yaer'" in response.json()["error"]["message"]
    assert "year" in response.json()["error"]["message"]


async def test_sub_queries_can_be_left_out(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    body = {"query": "Which is heavier, iron or honey?"}
    for rewrite in (True, False):
        await client.post("/v1/search", json=body | {"rewrite": rewrite})
    assert [len(request.texts) for request in fakes.embedder.requests] == [3, 1]


async def test_a_collection_of_another_model_is_a_conflict(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    fakes.retriever.faults.error = IndexMismatch("indexed with another model; ingest it again")
    response = await client.post("/v1/search", json={"query": "honey"})
    assert response.status_code == 409
    assert response.json()["error"]["type"] == "index_mismatch"


async def test_a_search_that_is_too_slow_is_answered_504(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    fakes.retriever.faults.delay_s = 30
    response = await client.post("/v1/search", json={"query": "honey", "timeout_s": 0.02})
    assert response.status_code == 504


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("year", [[2001]]), ("year", {"gt": {"gt": 1}}), ("title", ["x"] * 1001), ("title", "x" * 65_537)],
)
async def test_a_filter_that_would_burden_the_searches_of_others_is_refused_by_name(
    fakes: FakeServices, client: httpx.AsyncClient, name: str, wanted: object
) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "filter": {name: wanted}})
    assert response.status_code == 400
    assert repr(name) in response.json()["error"]["message"]
    assert fakes.retriever.requests == []


@pytest.mark.parametrize(
    "wanted",
    [
        {f"field_{number}": 1 for number in range(101)},
        {"title": "x" * 40_000, "source": "y" * 40_000},
        {"x" * 40_000: 1, "y" * 40_000: 1},
        {"year": {"x" * 70_000: 1}},
    ],
    ids=["fields", "values", "names", "comparison"],
)
async def test_a_filter_that_is_too_large_as_a_whole_is_refused(
    fakes: FakeServices, client: httpx.AsyncClient, wanted: dict[str, object]
) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "filter": wanted})
    assert response.status_code == 400
    assert "at most 100 fields and 65536 characters" in response.json()["error"]["message"]
    assert fakes.retriever.requests == []


async def test_an_unknown_mode_is_refused_with_those_there_are(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "mode": "magic"})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "mode: Input should be 'vector', 'text' or 'hybrid'"
