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
    response = await client.post("/v1/search", json={"query": "honey"})
    timings = response.json()["timings"]
    assert [row["stage"] for row in timings] == ["parse", "rewrite", "embed", "search", "rerank"]
    header = ", ".join(f"{row['stage']};dur={row['total_s'] * 1000:.2f}" for row in timings)
    assert response.headers["server-timing"] == header


async def test_reranking_can_be_left_out(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "rerank": False, "k": 2})
    assert fakes.reranker.requests == []
    assert len(response.json()["results"]) == 2
    assert [row["stage"] for row in response.json()["timings"]] == ["parse", "rewrite", "embed", "search"]


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


@pytest.mark.parametrize("mode", ["text", "hybrid"])
async def test_modes_that_are_not_built_yet_are_refused_with_the_one_that_is(
    client: httpx.AsyncClient, mode: str
) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "mode": mode})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"mode '{mode}' is not available yet; use 'vector'"


async def test_a_collection_of_another_model_is_a_conflict(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    fakes.retriever.faults.error = IndexMismatch("indexed with another model; ingest it again")
    response = await client.post("/v1/search", json={"query": "honey"})
    assert response.status_code == 409
    assert response.json()["error"]["type"] == "index_mismatch"


@pytest.mark.parametrize("stage", ["embedder", "retriever", "reranker"])
async def test_a_stage_that_is_too_slow_is_answered_504(
    fakes: FakeServices, client: httpx.AsyncClient, stage: str
) -> None:
    getattr(fakes, stage).faults.delay_s = 30
    response = await client.post("/v1/search", json={"query": "honey", "timeout_s": 0.02})
    assert response.status_code == 504


async def test_an_unknown_mode_is_refused_with_those_there_are(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "honey", "mode": "magic"})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "mode: Input should be 'vector', 'text' or 'hybrid'"
