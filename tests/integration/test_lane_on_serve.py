"""The local profile on real Ray Serve, LanceDB and MiniLM, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from deployments.contracts import STAGES
from tests.serving import StartApp

DOCUMENTS = [
    {
        "id": "tides",
        "title": "Tides",
        "text": "Tides are the rise and fall of the sea. They are caused by the gravity of the moon and of the sun.",
        "metadata": {"year": 2024, "kind": "nature"},
    },
    {
        "id": "rust",
        "title": "Rust",
        "text": "Rust is a programming language. Its borrow checker rejects dangling references at compile time.",
        "metadata": {"year": 2015, "kind": "software"},
    },
    {
        "id": "bread",
        "title": "Bread",
        "text": "Bread is baked from flour and water. Yeast makes the dough rise because it produces gas.",
        "metadata": {"year": 1900, "kind": "food"},
    },
]


@pytest.fixture(scope="module")
def url(start_app: StartApp) -> str:
    url = start_app({"lane": {"default_collection": "notes"}})
    taken = httpx.post(f"{url}/v1/documents", json={"collection": "notes", "documents": DOCUMENTS}, timeout=60)
    assert taken.json()["indexed"] == ["tides", "rust", "bread"]
    return url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_every_stage_reports_ready(client: httpx.Client) -> None:
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    assert set(ready.json()["stages"]) == {"Embedder", "Retriever", "Indexer", "Reranker", "Generator"}
    assert set(ready.json()["stages"].values()) == {"ready"}


def test_the_answer_quotes_the_passage_that_holds_it(client: httpx.Client) -> None:
    answer = client.post("/v1/answers", json={"question": "What causes the tides?"}).json()
    assert "gravity of the moon" in answer["answer"]
    assert answer["generator"] == "extractive"
    assert answer["citations"][0]["document_id"] == "tides"
    assert answer["degraded"] == []
    assert f"[{answer['citations'][0]['number']}]" in answer["answer"]


def test_a_question_that_the_documents_do_not_answer_is_answered_so(client: httpx.Client) -> None:
    answer = client.post("/v1/answers", json={"question": "Who won the chess championship of 1972?"}).json()
    assert answer["answer"] == "Not found in the documents."
    assert answer["citations"] == []


def test_timings_name_the_stages_in_order_and_add_up(client: httpx.Client) -> None:
    response = client.post("/v1/answers", json={"question": "Why does dough rise?"})
    rows = response.json()["timings"]
    assert [row["stage"] for row in rows] == list(STAGES)
    for row in rows:
        assert row["queue_s"] + row["batch_wait_s"] + row["compute_s"] == pytest.approx(row["total_s"], abs=1e-6)
    assert sum(row["total_s"] for row in rows) <= response.elapsed.total_seconds()
    assert response.headers["server-timing"].startswith("parse;dur=")


def test_search_orders_by_score_and_filters_by_metadata(client: httpx.Client) -> None:
    found = client.post("/v1/search", json={"query": "gravity of the moon", "collection": "notes", "k": 3}).json()
    assert found["results"][0]["document_id"] == "tides"
    scores = [result["score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True)
    old = {"query": "gravity of the moon", "collection": "notes", "filter": {"year": {"lt": 2020}}}
    results = client.post("/v1/search", json=old).json()["results"]
    assert {result["document_id"] for result in results} == {"rust", "bread"}


def test_the_same_document_again_replaces_it(client: httpx.Client) -> None:
    def put(text: str) -> dict[str, Any]:
        body = {"collection": "versions", "documents": [{"id": "a/b c", "text": text}]}
        report: dict[str, Any] = client.post("/v1/documents", json=body).json()
        return report

    assert put("The first version speaks of apples.")["replaced"] == 0
    assert put("The second version speaks of pears.")["replaced"] == 1
    stored = client.get("/v1/documents/a/b c", params={"collection": "versions"}).json()
    assert "pears" in str(stored)
    assert "apples" not in str(stored)
    found = client.post("/v1/search", json={"query": "apples", "collection": "versions"}).json()["results"]
    assert [result["document_id"] for result in found] == ["a/b c"]
    assert client.delete("/v1/documents/a/b c", params={"collection": "versions"}).status_code == 200
    assert client.post("/v1/search", json={"query": "apples", "collection": "versions"}).json()["results"] == []
    assert client.delete("/v1/collections/versions").status_code in (200, 204)
    assert client.post("/v1/search", json={"query": "apples", "collection": "versions"}).status_code == 404


async def test_concurrent_requests_share_batches_and_each_gets_its_own_answer(url: str) -> None:
    questions = ["gravity of the moon", "borrow checker", "yeast and dough"] * 32
    expected = ["tides", "rust", "bread"] * 32
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        posts = [client.post("/v1/search", json={"query": q, "collection": "notes", "k": 1}) for q in questions]
        answers = [response.json() for response in await asyncio.gather(*posts)]
    assert [answer["results"][0]["document_id"] for answer in answers] == expected
    largest = {
        stage: max(row["batch_size"] for answer in answers for row in answer["timings"] if row["stage"] == stage)
        for stage in ("embed", "search")
    }
    assert largest["embed"] > 1
    assert largest["search"] > 1


async def test_a_stream_begins_with_sources_and_ends_with_the_same_answer_as_json(url: str) -> None:
    body = {"question": "What causes the tides?", "collection": "notes"}
    names, text = [], ""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        whole = (await client.post("/v1/answers", json=body)).json()
        async with client.stream("POST", "/v1/answers", json=body | {"stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                elif line.startswith("data: ") and names[-1] == "token":
                    text += httpx.Response(200, content=line.removeprefix("data: ")).json()["text"]
    assert names[0] == "sources"
    assert names[-1] == "done"
    assert text == whole["answer"]


async def test_the_openai_client_works_unmodified(url: str) -> None:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    messages: Any = [{"role": "user", "content": "What causes the tides?"}]
    whole = await client.chat.completions.create(model="raglane/notes", messages=messages)
    stream = await client.chat.completions.create(model="raglane/notes", messages=messages, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "gravity" in (whole.choices[0].message.content or "")
    assert "".join(pieces) == whole.choices[0].message.content
    assert "raglane/notes" in [model.id async for model in client.models.list()]
    vectors = await client.embeddings.create(model="all-MiniLM-L6-v2", input=["one", "two"])
    assert [len(item.embedding) for item in vectors.data] == [384, 384]
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="raglane/nowhere", messages=messages)


def test_ad_hoc_texts_are_reranked_without_being_stored(client: httpx.Client) -> None:
    body = {"query": "What causes the tides?", "documents": ["Bread needs yeast.", "The moon pulls on the sea."]}
    results = client.post("/v1/rerank", json=body | {"top_n": 1, "return_documents": True}).json()["results"]
    assert [result["index"] for result in results] == [1]
    assert results[0]["document"]["text"] == "The moon pulls on the sea."


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/search", {"query": "", "collection": "notes"}, (400, 422), "empty"),
        ("/v1/search", {"query": "a", "collection": "nowhere"}, (404,), "nowhere"),
        ("/v1/search", {"query": "a", "collection": "../etc"}, (400, 404, 422), "etc"),
        ("/v1/search", {"query": "a", "collection": "notes", "filter": {"x' OR 1=1": 1}}, (400,), "x' OR 1=1"),
        ("/v1/search", {"query": "a", "collection": "notes", "kk": 1}, (422,), "'k'"),
        ("/v1/answers", {"question": "a", "collection": "notes", "timeout_s": -1}, (400, 422), "timeout_s"),
        ("/v1/embeddings", {"input": "word " * 5000}, (400,), "256"),
    ],
)
def test_bad_input_is_refused_with_what_to_change(
    client: httpx.Client, path: str, body: dict[str, Any], status: tuple[int, ...], says: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code in status
    error = response.json()["error"]
    assert says in error["message"]
    assert "Traceback" not in response.text
