"""/v1/documents and /v1/collections."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from serve_app.api.services import HttpConfig
from tests.api import FakeServices


@pytest.fixture
def fakes() -> FakeServices:
    return FakeServices(HttpConfig(max_documents_per_request=3))


async def test_documents_are_indexed_and_found(client: httpx.AsyncClient) -> None:
    documents = [{"id": "a", "text": "One sentence. Another.\n\nA second chunk."}, {"id": "b", "text": "Short."}]
    response = await client.post("/v1/documents", json={"documents": documents})
    assert response.status_code == 200
    report = response.json()
    assert report["indexed"] == ["a", "b"]
    assert (report["replaced"], report["chunks"], report["sentences"]) == (0, 3, 4)
    assert report["tokens"] > 0
    assert report["rejected"] == []
    assert report["elapsed_s"] > 0
    assert report["request_id"] == response.headers["x-request-id"]
    found = await client.post("/v1/search", json={"query": "second chunk", "k": 1})
    assert found.json()["results"][0]["document_id"] == "a"


async def test_the_same_document_again_replaces(client: httpx.AsyncClient) -> None:
    for text, replaced in (("old", 0), ("new", 1)):
        report = (await client.post("/v1/documents", json={"documents": [{"id": "a", "text": text}]})).json()
        assert report["replaced"] == replaced
    assert (await client.get("/v1/documents/a")).json()["text"] == "new"
    assert (await client.get("/v1/collections")).json()["collections"][0]["num_documents"] == 1


async def test_a_document_without_an_id_is_named_after_its_text(client: httpx.AsyncClient) -> None:
    report = (await client.post("/v1/documents", json={"documents": [{"text": "a text"}]})).json()
    assert report["indexed"] == [hashlib.sha256(b"a text").hexdigest()]


async def test_a_rejected_document_does_not_fail_its_neighbours(client: httpx.AsyncClient) -> None:
    documents = [{"id": "empty", "text": " "}, {"id": "full", "text": "some text"}]
    response = await client.post("/v1/documents", json={"documents": documents})
    assert response.status_code == 200
    assert response.json()["indexed"] == ["full"]
    assert response.json()["rejected"] == [{"id": "empty", "reason": "the document has no text"}]


async def test_a_request_of_which_nothing_was_indexed_says_so_in_its_status(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/documents", json={"documents": [{"id": "empty", "text": " "}]})
    assert response.status_code == 422
    assert response.json()["rejected"] == [{"id": "empty", "reason": "the document has no text"}]


async def test_a_document_comes_back_as_it_was_sent_even_with_slashes_in_its_id(client: httpx.AsyncClient) -> None:
    document = {
        "id": "notes/2024/ä b.txt",
        "text": "Text.",
        "title": "T",
        "source": "s",
        "metadata": {"year": 2024, "draft": False},
    }
    await client.post("/v1/documents", json={"collection": "notes", "documents": [document]})
    stored = (await client.get("/v1/documents/notes/2024/ä b.txt", params={"collection": "notes"})).json()
    assert {key: stored[key] for key in document} == document
    assert stored["collection"] == "notes"
    assert stored["num_chunks"] == 1
    assert stored["indexed_at"]


async def test_a_deleted_document_is_gone(client: httpx.AsyncClient) -> None:
    await client.post("/v1/documents", json={"documents": [{"id": "a/b", "text": "One.\n\nTwo."}]})
    deleted = await client.delete("/v1/documents/a/b")
    assert deleted.status_code == 200
    assert deleted.json()["deleted_chunks"] == 2
    for again in (await client.get("/v1/documents/a/b"), await client.delete("/v1/documents/a/b")):
        assert again.status_code == 404
        assert again.json()["error"]["message"] == "there is no document 'a/b' in collection 'docs'"


async def test_a_mistyped_query_parameter_deletes_nothing(client: httpx.AsyncClient) -> None:
    await client.post("/v1/documents", json={"documents": [{"id": "a", "text": "One."}]})
    response = await client.delete("/v1/documents/a", params={"colection": "other"})
    assert response.status_code == 422
    assert "did you mean 'collection'" in response.json()["error"]["message"]
    assert (await client.get("/v1/documents/a")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"documents": []}, 422, "documents: "),
        ({"documents": [{"text": "x"}] * 4}, 413, "send at most 3 at a time"),
        ({"documents": [{"id": "a"}]}, 422, "documents.0.text: this field is required"),
        ({"documents": [{"text": "x", "tilte": "y"}]}, 422, "did you mean 'title'"),
        ({"documents": [{"text": "x", "metadata": {"tags": ["a"]}}]}, 422, "'tags' must be a string, a number"),
        ({"documents": [{"text": "x"}], "timeout_s": 1e6}, 400, "ask for at most 300"),
    ],
)
async def test_bad_documents_are_refused_with_what_to_change(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, message: str
) -> None:
    response = await client.post("/v1/documents", json=body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


async def test_collections_are_created_listed_and_deleted(client: httpx.AsyncClient) -> None:
    created = await client.post("/v1/collections", json={"name": "papers"})
    assert created.status_code == 201
    assert created.json()["name"] == "papers"
    await client.post("/v1/documents", json={"documents": [{"id": "a", "text": "One.\n\nTwo."}]})
    listed = (await client.get("/v1/collections")).json()["collections"]
    assert [(info["name"], info["num_documents"], info["num_chunks"]) for info in listed] == [
        ("docs", 1, 2),
        ("papers", 0, 0),
    ]
    assert (await client.delete("/v1/collections/papers")).json()["name"] == "papers"
    assert [info["name"] for info in (await client.get("/v1/collections")).json()["collections"]] == ["docs"]


async def test_a_collection_is_not_created_twice_nor_deleted_twice(client: httpx.AsyncClient) -> None:
    await client.post("/v1/collections", json={"name": "papers"})
    assert (await client.post("/v1/collections", json={"name": "papers"})).status_code == 409
    assert (await client.delete("/v1/collections/papers")).status_code == 200
    assert (await client.delete("/v1/collections/papers")).status_code == 404


async def test_a_name_that_can_not_name_a_collection_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/collections", json={"name": "../etc"})).status_code == 400


async def test_an_indexing_request_past_its_deadline_is_answered_504(
    fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    fakes.indexer.faults.delay_s = 30
    ask = {"documents": [{"text": "x"}], "timeout_s": 0.02}
    assert (await client.post("/v1/documents", json=ask)).status_code == 504
