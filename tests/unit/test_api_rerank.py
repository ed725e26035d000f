"""POST /v1/rerank."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from deployments.contracts import RerankRequest, Timed, Vector
from serve_app.api.services import HttpConfig
from tests.api import RERANKER_MODEL, FakeServices
from tests.fakes import FakeReranker

DOCUMENTS = ["iron rusts", "the moon pulls the tides", "the moon"]


@pytest.fixture
def fakes() -> FakeServices:
    return FakeServices(HttpConfig(max_inputs=10, chunk_texts=4))


async def test_documents_come_back_by_relevance(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/rerank", json={"query": "moon tides", "documents": DOCUMENTS})
    assert response.status_code == 200
    ranked = response.json()
    assert ranked["results"] == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 2, "relevance_score": 0.5},
        {"index": 0, "relevance_score": 0.0},
    ]
    assert ranked["model"] == RERANKER_MODEL
    assert ranked["usage"] == {"documents": 3}
    assert ranked["id"] == f"rerank-{ranked['request_id']}"
    assert [row["stage"] for row in ranked["timings"]] == ["rerank"]
    assert response.headers["server-timing"].startswith("rerank;dur=")


async def test_documents_may_be_objects_and_be_returned(client: httpx.AsyncClient) -> None:
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1], "id": 7}, DOCUMENTS[2]]
    ask = {"query": "moon tides", "documents": documents, "top_n": 1, "return_documents": True}
    results = (await client.post("/v1/rerank", json=ask)).json()["results"]
    assert results == [{"index": 1, "relevance_score": 1.0, "document": {"text": DOCUMENTS[1]}}]


async def test_equal_documents_keep_their_order_across_messages(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    ask = {"query": "moon", "documents": ["sun"] * 5 + ["moon"] * 5}
    results = (await client.post("/v1/rerank", json=ask)).json()["results"]
    assert [len(request.candidates) for request in fakes.reranker.requests] == [4, 4, 2]
    assert [result["index"] for result in results] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


async def test_scores_that_compare_within_a_request_are_asked_for_in_one(fakes: FakeServices) -> None:
    class BestOfRequest(FakeReranker):
        async def rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
            scored = await super().rerank(request, budget_s)
            return replace(scored, value=scored.value / max(scored.value.max(), 0.01))

    fakes.reranker, fakes.rerank_in_parts = BestOfRequest(), False
    ask = {"query": "moon tides", "documents": ["the moon", *["sun"] * 5, "the moon pulls the tides"]}
    async with fakes.client() as client:
        results = (await client.post("/v1/rerank", json=ask)).json()["results"]
    assert [(result["index"], result["relevance_score"]) for result in results[:2]] == [(6, 1.0), (0, 0.5)]


async def test_fields_of_other_servers_are_ignored(client: httpx.AsyncClient) -> None:
    ask = {"query": "moon", "documents": DOCUMENTS, "model": RERANKER_MODEL, "max_tokens_per_doc": 512}
    assert (await client.post("/v1/rerank", json=ask)).status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"query": " "}, 400, "the question is empty"),
        ({"documents": []}, 400, "documents is empty"),
        ({"documents": ["a", ""]}, 400, "documents[1] is empty"),
        ({"documents": ["a", {"title": "b"}]}, 422, "document 1 must be a string or an object"),
        ({"documents": ["a"] * 11}, 413, "at most 10"),
        ({"documents": "a"}, 422, "documents: "),
        ({"top_n": 0}, 422, "top_n: "),
        ({"model": "rerank-v3.5"}, 404, RERANKER_MODEL),
    ],
)
async def test_bad_input_is_refused_with_what_to_change(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, message: str
) -> None:
    response = await client.post("/v1/rerank", json={"query": "moon", "documents": DOCUMENTS} | change)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


async def test_a_reranker_that_is_too_slow_is_answered_504(fakes: FakeServices, client: httpx.AsyncClient) -> None:
    fakes.reranker.faults.delay_s = 30
    ask = {"query": "moon", "documents": DOCUMENTS, "timeout_s": 0.02}
    assert (await client.post("/v1/rerank", json=ask)).status_code == 504
