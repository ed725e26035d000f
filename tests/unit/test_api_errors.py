"""The status table, the two shapes of an error, and what an error never tells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deployments.errors import (
    EngineDead,
    EngineFailed,
    IndexMismatch,
    Overloaded,
    RaglaneError,
    StageUnavailable,
)
from serve_app.api.errors import STATUS_TABLE, failure_of
from serve_app.api.services import HttpConfig
from tests.api import FakeServices


def all_errors(error: type[RaglaneError] = RaglaneError) -> Iterator[type[RaglaneError]]:
    yield error
    for subclass in error.__subclasses__():
        yield from all_errors(subclass)


@pytest.mark.parametrize("error", list(all_errors()))
def test_every_error_has_a_status_and_a_name_of_its_own(error: type[RaglaneError], fakes: FakeServices) -> None:
    # An engine that is dead for good is, to a client, a stage that is not available.
    assert error in STATUS_TABLE or error is EngineDead
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "app": fakes.api()}
    failure = failure_of(error("what to change"), scope)
    assert failure.status >= 400
    assert failure.message == "what to change"


def test_no_two_errors_share_a_name() -> None:
    names = [name for _, name in STATUS_TABLE.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("full", 4.2), 429, "5"),
        (Overloaded("full", 0.0), 429, "1"),
        (Overloaded("full"), 429, "3"),
        (StageUnavailable("the stage is starting"), 503, "3"),
        (EngineDead("the engine is gone"), 503, "3"),
        (EngineFailed("failed"), 500, None),
        (IndexMismatch("ingest again"), 409, None),
    ],
)
async def test_only_what_may_pass_tells_when_to_come_back(
    error: RaglaneError, status: int, retry_after: str | None
) -> None:
    fakes = FakeServices(HttpConfig(retry_after_s=3))
    await fakes.fill()
    fakes.retriever.faults.error = error
    async with fakes.client() as client:
        response = await client.post("/v1/search", json={"query": "moon"})
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert response.json()["error"]["message"] == error.message


@pytest.mark.parametrize("path", ["/v1/search", "/v1/embeddings"])
async def test_an_unforeseen_error_is_logged_whole_and_told_bare(
    fakes: FakeServices, client: httpx.AsyncClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.embedder.faults.error = ValueError("password=hunter2")
    body = {"query": "moon"} if path == "/v1/search" else {"input": "moon"}
    with caplog.at_level(logging.ERROR):
        response = await client.post(path, json=body, headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "abc"
    assert "hunter2" not in response.text
    assert "Traceback" not in response.text
    assert "internal error" in response.json()["error"]["message"]
    (record,) = caplog.records
    assert "[abc]" in record.message
    assert record.exc_info is not None


async def test_native_errors_have_type_message_and_request_id(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": ""})
    error = response.json()["error"]
    assert set(error) == {"type", "message", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]


async def test_openai_paths_answer_in_openais_shape(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/embeddings", json={"input": ""})
    assert response.json() == {
        "error": {
            "message": "input[0] is empty; send some text",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_input",
        },
        "request_id": response.headers["x-request-id"],
    }


@pytest.mark.parametrize(
    "body",
    [b'{"query": ', b'{"query": "\\ud800"}', b'{"query": "\xff"}', b"[" * 5000, b'{"query": "x", "k": NaN}'],
    ids=["cut", "lone surrogate", "bad utf-8", "too deep", "NaN"],
)
@pytest.mark.parametrize("path", ["/v1/search", "/v1/embeddings"])
async def test_broken_json_is_refused(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "the body is not valid JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b'{"query": "x"}', "application/x-www-form-urlencoded"),
        (b'{"query": "x"}', "text/plain"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused_with_how_to_send_one(
    client: httpx.AsyncClient, content: bytes, content_type: str
) -> None:
    response = await client.post("/v1/search", content=content, headers={"content-type": content_type})
    assert response.status_code == 422
    assert "must be a JSON object" in response.json()["error"]["message"]


async def test_all_problems_of_a_body_are_named_at_once(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"k": "many", "rerank": "maybe", "timeout_s": -1, "mode": "x"}
    message = (await client.post("/v1/search", json=body)).json()["error"]["message"]
    for field in ("collection", "filter"):
        assert field not in message
    assert message.count(";") == 3
    assert message.endswith("; and 2 more")


async def test_an_unknown_path_and_a_wrong_method_are_answered_in_the_same_shape(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/v1/anwers", json={})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"] == "there is no POST /v1/anwers"
    wrong = await client.get("/v1/answers")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["type"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/documents", {"documents": [1] * 2000}),
        ("/v1/rerank", {"query": "moon", "documents": [None] * 2000}),
        ("/v1/embeddings", {"input": [None] * 2000}),
        ("/v1/chat/completions", {"model": "raglane", "messages": [{}] * 2000}),
    ],
)
async def test_a_list_that_no_request_may_have_is_refused_before_its_items_are_looked_at(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 413
    assert "has 2000 items; send at most 1024 at a time" in response.json()["error"]["message"]


async def test_a_chat_may_be_longer_than_a_list_of_texts() -> None:
    fakes = FakeServices(HttpConfig(max_inputs=2, max_documents_per_request=2))
    await fakes.fill()
    turns = [{"role": role, "content": "moon"} for role in ("user", "assistant", "user")]
    async with fakes.client() as client:
        response = await client.post("/v1/chat/completions", json={"model": "raglane/docs", "messages": turns})
    assert response.status_code == 200
