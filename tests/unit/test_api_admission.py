"""The door: request ids, how many get in, how large they may be, and who has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from serve_app.api.app import create_api
from serve_app.api.services import HttpConfig
from tests.api import FakeServices, RawRequest

BODY = {"query": "moon"}


@pytest.fixture
async def fakes() -> FakeServices:
    fakes = FakeServices(HttpConfig(max_concurrent_requests=2, retry_after_s=3, max_body_bytes=2048))
    await fakes.fill()
    return fakes


@pytest.fixture
def api(fakes: FakeServices) -> FastAPI:
    return fakes.api()


@pytest.fixture
async def client(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        yield client


async def fill_the_room(api: FastAPI, fakes: FakeServices) -> list[RawRequest]:
    fakes.generator.faults.delay_s = 30
    requests = [RawRequest(api, "/v1/answers", {"question": "moon"}) for _ in range(2)]
    while len(fakes.generator.requests) < 2:
        fakes.generator.begun.clear()
        await fakes.generator.begun.wait()
    return requests


async def test_a_full_room_refuses_at_the_door_and_says_when_to_come_back(
    api: FastAPI, fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    inside = await fill_the_room(api, fakes)
    refused = await client.post("/v1/search", json=BODY)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "3"
    assert refused.json()["error"]["type"] == "overloaded"
    assert refused.headers["x-request-id"] == refused.json()["error"]["request_id"]
    assert (await client.post("/v1/embeddings", json={"input": "x"})).json()["error"]["type"] == "rate_limit_error"
    for request in inside:
        request.hang_up()
        await asyncio.wait_for(request.served, 60)


async def test_room_comes_back_when_requests_end_however_they_end(
    api: FastAPI, fakes: FakeServices, client: httpx.AsyncClient
) -> None:
    inside = await fill_the_room(api, fakes)
    for request in inside:
        request.hang_up()
        await asyncio.wait_for(request.served, 60)
    fakes.generator.faults.delay_s = 0
    fakes.embedder.faults.error = ValueError("unforeseen")
    for _ in range(5):
        assert (await client.post("/v1/search", json=BODY)).status_code == 500
    fakes.embedder.faults.error = None
    for _ in range(5):
        assert (await client.post("/v1/search", json=BODY)).status_code == 200


async def test_health_is_answered_in_a_full_room(api: FastAPI, fakes: FakeServices, client: httpx.AsyncClient) -> None:
    inside = await fill_the_room(api, fakes)
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).status_code == 200
    for request in inside:
        request.hang_up()
        await asyncio.wait_for(request.served, 60)


async def test_a_body_of_declared_size_is_refused_by_it(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json={"query": "x" * 4096})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "too_large"
    assert "2048 bytes" in response.json()["error"]["message"]


async def test_a_body_of_undeclared_size_is_refused_when_it_has_grown_too_large(client: httpx.AsyncClient) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b" " * 1024

    response = await client.post("/v1/search", content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "too_large"
    assert taken == 3


async def test_a_clients_own_request_id_is_kept(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/search", json=BODY, headers={"x-request-id": "trace-42"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "trace-42"


@pytest.mark.parametrize("wanted", [b"x" * 129, "Ümlaut".encode(), b"tab\tinside", b""])
async def test_an_unusable_request_id_is_replaced(client: httpx.AsyncClient, wanted: bytes) -> None:
    response = await client.get("/health/live", headers={b"x-request-id": wanted})
    made = response.headers["x-request-id"]
    assert made.encode() != wanted
    assert len(made) == 32


async def test_every_request_gets_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    ids = [(await client.get(path)).headers["x-request-id"] for path in ("/health/live", "/v1/models", "/nowhere")]
    assert len(set(ids)) == 3


async def test_the_id_is_not_returned_twice_behind_a_server_that_returns_it(fakes: FakeServices) -> None:
    api = create_api(fakes.services(), echo_request_id=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        response = await client.post("/v1/search", json=BODY, headers={"x-request-id": "abc"})
    assert "x-request-id" not in response.headers
    assert response.json()["request_id"] == "abc"


async def test_a_client_that_leaves_while_a_stage_works_cancels_that_stage(api: FastAPI, fakes: FakeServices) -> None:
    fakes.generator.faults.delay_s = 30
    request = RawRequest(
        api, "/v1/chat/completions", {"model": "raglane", "messages": [{"role": "user", "content": "x"}]}
    )
    await fakes.generator.begun.wait()
    request.hang_up()
    await asyncio.wait_for(request.served, 60)
    assert fakes.generator.num_running == 0
    assert request.sent.empty()


@pytest.mark.virtual_time
async def test_a_body_that_does_not_come_gives_its_place_up(fakes: FakeServices, api: FastAPI) -> None:
    waiting = [RawRequest(api, "/v1/search", {"query": "moon"}, more_body=True) for _ in range(2)]
    for request in waiting:
        await request.served
        assert (await request.sent.get())["status"] == 408
        assert b"the body has not come within 60 s" in (await request.sent.get())["body"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        assert (await client.post("/v1/search", json={"query": "moon", "collection": "docs"})).status_code == 200
