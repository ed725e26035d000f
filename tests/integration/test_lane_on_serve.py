"""The local profile on real Ray Serve, LanceDB and MiniLM, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from deployments.contracts import STAGES
from tests.serving import StartApp, until_covered
from tests.sse import events_of

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


def put(client: httpx.Client, collection: str, *documents: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/documents", json={"collection": collection, "documents": documents})
    report: dict[str, Any] = response.raise_for_status().json()
    return report


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


def test_timings_name_every_call_of_a_stage_and_add_up(client: httpx.Client) -> None:
    response = client.post("/v1/answers", json={"question": "Why does dough rise?"})
    rows = response.json()["timings"]
    calls = [_call(row) for row in rows]
    # Vector and text search run side by side, and either may end first.
    between = ["embed", "search text", "search vector"]
    assert calls[:2] + sorted(calls[2:5]) + calls[5:] == (
        ["parse", "rewrite", *between, "search fuse", "rerank", "context", "generate"]
    )
    assert {row["stage"] for row in rows} == set(STAGES)
    for row in rows:
        assert row["queue_s"] + row["batch_wait_s"] + row["compute_s"] == pytest.approx(row["total_s"], abs=1e-6)
    assert response.headers["server-timing"].startswith("parse;dur=")


def test_each_call_begins_when_what_it_needs_is_there(client: httpx.Client) -> None:
    response = client.post("/v1/answers", json={"question": "What is bread baked from?"})
    rows = {_call(row): row for row in response.json()["timings"]}
    starts = {name: row["start_s"] for name, row in rows.items()}
    ends = {name: row["start_s"] + row["total_s"] for name, row in rows.items()}
    needs = {
        "rewrite": ["parse"],
        "embed": ["rewrite"],
        "search text": ["rewrite"],
        "search vector": ["embed"],
        "search fuse": ["search vector", "search text"],
        "rerank": ["search fuse"],
        "context": ["rerank"],
        "generate": ["context"],
    }
    rounding_s = 1e-6
    early = {(name, need) for name in needs for need in needs[name] if starts[name] < ends[need] - rounding_s}
    assert early == set()
    assert starts["search text"] < ends["embed"]
    assert max(ends.values()) <= response.elapsed.total_seconds()


def test_search_orders_by_score_and_filters_by_metadata(client: httpx.Client) -> None:
    found = client.post("/v1/search", json={"query": "gravity of the moon", "collection": "notes", "k": 3}).json()
    assert found["results"][0]["document_id"] == "tides"
    scores = [result["score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True)
    old = {"query": "gravity of the moon", "collection": "notes", "filter": {"year": {"lt": 2020}}}
    results = client.post("/v1/search", json=old).json()["results"]
    assert {result["document_id"] for result in results} == {"rust", "bread"}


def test_a_filter_may_stand_in_the_question(client: httpx.Client) -> None:
    for query in ("gravity of the moon year:<2020", "gravity of the moon metadata.year:1900..2015"):
        results = client.post("/v1/search", json={"query": query, "collection": "notes"}).json()["results"]
        assert {result["document_id"] for result in results} == {"rust", "bread"}
    answer = client.post("/v1/answers", json={"question": "What causes the tides? title:rust"}).json()
    assert not answer["found"]
    assert "tides" not in {citation["document_id"] for citation in answer["citations"]}


def test_every_index_comes_to_cover_what_was_ingested(url: str, client: httpx.Client) -> None:
    put(client, "covered", *DOCUMENTS)
    for collection in ("covered", "notes"):
        assert set(until_covered(url, collection)) == {"document_id", "id", "text"}
    assert client.get("/health/ready").json()["status"] == "ready"


def test_an_answer_is_given_again_until_its_collection_changes(url: str, client: httpx.Client) -> None:
    def ask(**options: Any) -> dict[str, Any]:
        body = {"question": "How tall is the lighthouse?", "collection": "lights"} | options
        answer: dict[str, Any] = client.post("/v1/answers", json=body).json()
        return answer

    put(client, "lights", {"id": "old", "text": "The lighthouse is 31 metres tall."})
    until_covered(url, "lights")
    first, again = ask(), ask()
    assert (first["cached"], again["cached"]) == (False, True)
    told = ("answer", "citations", "found", "confidence", "generator", "usage", "finish_reason")
    assert {name: again[name] for name in told} == {name: first[name] for name in told}
    assert [(row["stage"], row["branch"]) for row in again["timings"]][2:] == [("search", "version")]
    assert not ask(cache=False)["cached"]

    put(client, "elsewhere", {"id": "other", "text": "The lighthouse is painted white."})
    assert ask()["cached"]
    put(client, "lights", {"id": "old", "text": "The lighthouse was rebuilt and is 44 metres tall."})
    fresh = ask()
    assert not fresh["cached"]
    assert "44 metres" in fresh["answer"]
    assert "31 metres" not in fresh["answer"]


def test_an_answer_given_again_streams_as_well(url: str, client: httpx.Client) -> None:
    put(client, "streamed", *DOCUMENTS)
    until_covered(url, "streamed")
    body = {"question": "What causes the tides?", "collection": "streamed"}
    whole = client.post("/v1/answers", json=body).json()
    lines = client.post("/v1/answers", json=body | {"stream": True}).text.splitlines()
    assert [line for line in lines if line.startswith("event: ")] == ["event: sources", "event: token", "event: done"]
    _, token, end = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert (token["text"], end["cached"]) == (whole["answer"], True)
    assert end["citations"] == whole["citations"]


def test_the_same_document_again_replaces_it(client: httpx.Client) -> None:
    def put_version(text: str) -> dict[str, Any]:
        return put(client, "versions", {"id": "a/b c", "text": text})

    assert put_version("The first version speaks of apples.")["replaced"] == 0
    assert put_version("The second version speaks of pears.")["replaced"] == 1
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
    # No two alike: the vector of a question that was asked before is not computed again.
    asked = {"tides": "gravity of the moon", "rust": "borrow checker", "bread": "yeast and dough"}
    expected = [document for _ in range(32) for document in asked]
    questions = [f"{asked[document]}, part {number}" for number, document in enumerate(expected)]
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        posts = [client.post("/v1/search", json={"query": q, "collection": "notes", "k": 1}) for q in questions]
        answers = [response.json() for response in await asyncio.gather(*posts)]
    assert [answer["results"][0]["document_id"] for answer in answers] == expected
    assert [answer["degraded"] for answer in answers] == [[]] * len(answers)
    largest = {
        call: max(row["batch_size"] for answer in answers for row in answer["timings"] if _call(row) == call)
        for call in ("embed", "search vector", "search text")
    }
    assert min(largest.values()) > 1, largest


def _call(row: dict[str, Any]) -> str:
    return f"{row['stage']} {row['branch']}".strip()


def test_a_question_asked_before_is_not_embedded_again(url: str, client: httpx.Client) -> None:
    body = {"query": "Who keeps the borrow checker?", "collection": "notes"}
    # Maintenance between the two would change the scores.
    until_covered(url, "notes")
    first, again = [client.post("/v1/search", json=body).json() for _ in range(2)]
    sizes = [row["batch_size"] for answer in (first, again) for row in answer["timings"] if row["stage"] == "embed"]
    assert sizes == [1, 0]
    assert again["results"] == first["results"]


async def test_a_stream_begins_with_sources_and_ends_with_the_same_answer_as_json(
    url: str, client: httpx.Client
) -> None:
    body = {"question": "What causes the tides?", "collection": "notes", "cache": False}
    # Maintenance between the two would change the scores.
    until_covered(url, "notes")
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        whole = (await http.post("/v1/answers", json=body)).json()
        async with http.stream("POST", "/v1/answers", json=body | {"stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = [event async for event in events_of(response)]
    assert events[0][0] == "sources"
    name, end = events[-1]
    assert (name, end["cached"], end["citations"]) == ("done", False, whole["citations"])
    assert "".join(data["text"] for name, data in events if name == "token") == whole["answer"]


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
        ("/v1/search", {"query": "a", "collection": "notes", "filter": {"yaer": 2024}}, (400,), "'yaer'"),
        (
            "/v1/answers",
            {"question": "a", "collection": "notes", "filter": {"yaer": 2024}},
            (400,),
            "known fields: year",
        ),
        ("/v1/search", {"query": "a metadata.yaer:2024", "collection": "notes"}, (400,), "'metadata.yaer'"),
        ("/v1/search", {"query": "a year:2024", "collection": "notes", "filter": {"year": 2015}}, (400,), "'year'"),
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
