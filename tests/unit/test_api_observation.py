"""What observers are told of each request: its endpoint, its outcome, and the calls that its answer tells of."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from deployments.errors import EngineFailed
from serve_app.api.observation import RequestRecord
from serve_app.api.services import HttpConfig
from tests.api import FakeServices, RawRequest


@pytest.fixture
async def fakes() -> FakeServices:
    fakes = FakeServices(HttpConfig(max_concurrent_requests=1))
    await fakes.fill()
    return fakes


@pytest.fixture
def records() -> list[RequestRecord]:
    return []


@pytest.fixture
def client(fakes: FakeServices, records: list[RequestRecord]) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(fakes.api(records.append)), base_url="http://raglane")


@pytest.mark.parametrize(
    ("method", "path", "body", "endpoint", "status", "outcome"),
    [
        ("POST", "/v1/search", {"query": "moon", "collection": "docs"}, "/v1/search", 200, "ok"),
        ("POST", "/v1/answers", {"question": "moon", "collection": "docs"}, "/v1/answers", 200, "ok"),
        ("POST", "/v1/answers", {"question": ""}, "/v1/answers", 400, "client_error"),
        ("POST", "/v1/search", {"query": "moon", "collection": "nowhere"}, "/v1/search", 404, "client_error"),
        ("GET", "/v1/documents/notes/iron?collection=docs", None, "/v1/documents/{document_id:path}", 200, "ok"),
        ("GET", "/anything/else", None, "unknown", 404, "client_error"),
    ],
)
async def test_a_request_is_told_of_once_under_its_routes_path(
    client: httpx.AsyncClient,
    records: list[RequestRecord],
    method: str,
    path: str,
    body: Any,
    endpoint: str,
    status: int,
    outcome: str,
) -> None:
    response = await client.request(method, path, json=body, headers={"x-request-id": "mine"})
    (record,) = records
    assert response.status_code == status, response.text
    assert (record.method, record.endpoint, record.status, record.outcome) == (method, endpoint, status, outcome)
    assert record.request_id == "mine"
    assert record.seconds > 0
    assert record.started_at_ns > 0


async def test_health_is_nobodys_request(client: httpx.AsyncClient, records: list[RequestRecord]) -> None:
    assert (await client.get("/health/ready")).status_code == 200
    assert records == []


async def test_the_trace_has_the_calls_that_the_answer_tells_of(
    client: httpx.AsyncClient, records: list[RequestRecord]
) -> None:
    response = await client.post("/v1/answers", json={"question": "moon", "collection": "docs"})
    (record,) = records
    assert record.trace is not None
    told = [(timing["stage"], timing["branch"], timing["total_s"]) for timing in response.json()["timings"]]
    assert [(row.stage, row.branch, row.total_s) for row in record.trace.rows] == told


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["moon"]}),
        ("/v1/rerank", {"query": "moon", "documents": ["moon", "sea"]}),
        ("/v1/chat/completions", {"model": "raglane/docs", "messages": [{"role": "user", "content": "moon"}]}),
    ],
)
async def test_the_single_stages_and_the_chat_are_traced_as_well(
    client: httpx.AsyncClient, records: list[RequestRecord], path: str, body: dict[str, Any]
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert records[0].trace is not None
    assert records[0].trace.rows


async def test_an_answer_without_a_stage_is_degraded(
    client: httpx.AsyncClient, fakes: FakeServices, records: list[RequestRecord]
) -> None:
    fakes.reranker.faults.error = EngineFailed("broken")
    response = await client.post("/v1/search", json={"query": "moon", "collection": "docs"})
    assert response.json()["degraded"] == ["rerank"]
    assert records[0].outcome == "degraded"


@pytest.mark.virtual_time
async def test_what_a_full_server_sheds_and_what_runs_out_of_time_are_told_apart(
    fakes: FakeServices, records: list[RequestRecord]
) -> None:
    api = fakes.api(records.append)
    fakes.generator.faults.delay_s = 3600
    inside = RawRequest(api, "/v1/answers", {"question": "moon", "collection": "docs", "timeout_s": 60})
    await fakes.generator.begun.wait()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        assert (await client.post("/v1/search", json={"query": "moon"})).status_code == 429
    await inside.served
    assert [(record.status, record.outcome) for record in records] == [(429, "shed"), (504, "deadline")]
    assert [record.endpoint for record in records] == ["/v1/search", "/v1/answers"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_told_of_as_such(
    fakes: FakeServices, records: list[RequestRecord], stream: bool
) -> None:
    fakes.generator.faults.delay_s = 30
    body = {"question": "moon", "collection": "docs", "stream": stream}
    request = RawRequest(fakes.api(records.append), "/v1/answers", body)
    await fakes.generator.begun.wait()
    request.hang_up()
    async with asyncio.timeout(60):
        await request.served
    assert [record.outcome for record in records] == ["disconnected"]


@pytest.mark.virtual_time
async def test_a_client_that_stops_reading_is_let_go_after_its_deadline(
    fakes: FakeServices, records: list[RequestRecord]
) -> None:
    body = {"question": "moon", "collection": "docs", "stream": True, "timeout_s": 60}
    request = RawRequest(fakes.api(records.append), "/v1/answers", body, max_unread=2)
    await request.served
    assert fakes.generator.num_running == 0
    assert [(record.status, record.outcome) for record in records] == [(200, "deadline")]


async def test_a_client_that_leaves_during_its_upload_has_sent_no_bad_request(
    fakes: FakeServices, records: list[RequestRecord]
) -> None:
    request = RawRequest(fakes.api(records.append), "/v1/answers", {"question": "moon"}, more_body=True)
    request.hang_up()
    async with asyncio.timeout(60):
        await request.served
    assert [(record.status, record.outcome) for record in records] == [(None, "disconnected")]


async def test_a_stream_that_breaks_after_its_first_byte_counts_as_failed(
    client: httpx.AsyncClient, fakes: FakeServices, records: list[RequestRecord]
) -> None:
    fakes.generator.fail_after = 2
    fakes.generator.faults.error = EngineFailed("broken")
    body = {"question": "moon", "collection": "docs", "stream": True}
    response = await client.post("/v1/answers", json=body)
    assert "event: error" in response.text
    assert [(record.status, record.outcome) for record in records] == [(200, "server_error")]


async def test_the_report_of_the_stages_is_served_for_any_window_it_may_have(client: httpx.AsyncClient) -> None:
    whole = (await client.get("/v1/stages")).json()
    assert [stage["stage"] for stage in whole["stages"]] == [
        "parse",
        "rewrite",
        "embed",
        "search",
        "rerank",
        "context",
        "generate",
    ]
    assert whole["bottleneck"] is None
    assert (await client.get("/v1/stages", params={"window_s": 2.5})).json()["window_s"] == 2.5
    for wrong in (-1, 61, "soon"):
        refused = await client.get("/v1/stages", params={"window_s": wrong})
        assert refused.status_code == 422
        assert "window_s" in refused.json()["error"]["message"]
