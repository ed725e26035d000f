"""/health/live, /health/ready, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from deployments.errors import StageUnavailable
from serve_app.api.app import create_api
from serve_app.api.openapi import openapi_json
from serve_app.api.services import HttpConfig
from tests.api import FakeServices

SNAPSHOT = Path(__file__).parents[1] / "openapi.json"


@pytest.fixture
def fakes() -> FakeServices:
    return FakeServices(HttpConfig(readiness_timeout_s=0.02))


async def test_a_live_process_says_so(fakes: FakeServices) -> None:
    async with fakes.client() as client:
        response = await client.get("/health/live")
    assert (response.status_code, response.json()) == (200, {"status": "live"})


async def test_readiness_lists_the_stages(fakes: FakeServices) -> None:
    async with fakes.client() as client:
        response = await client.get("/health/ready")
    assert response.status_code == 200
    stages = {"embed": "ready", "generate": "ready"}
    assert response.json() == {"status": "ready", "stages": stages, "index_coverage": {}}


async def test_readiness_tells_how_far_the_indexes_cover_each_collection(fakes: FakeServices) -> None:
    await fakes.fill()
    async with fakes.client() as client:
        covered = (await client.get("/health/ready")).json()["index_coverage"]
        fakes.indexer.faults.error = StageUnavailable("restarting")
        unknown = (await client.get("/health/ready")).json()["index_coverage"]
    assert list(covered) == ["docs"]
    assert all(share == 1.0 for share in covered["docs"].values())
    assert unknown == {}


async def test_what_is_not_ready_is_named(fakes: FakeServices) -> None:
    fakes.readiness["generate"] = "the model is being loaded"
    async with fakes.client() as client:
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["status"] == "not ready"
    assert response.json()["stages"]["generate"] == "the model is being loaded"


async def test_stages_that_do_not_answer_are_not_ready(fakes: FakeServices) -> None:
    async def never() -> Mapping[str, str]:
        await asyncio.sleep(30)
        return {}

    api = create_api(replace(fakes.services(), readiness=never))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["stages"] == {"serve": "no answer within 0.02 s"}


def test_the_committed_openapi_document_is_the_served_one() -> None:
    # Made anew by: python -m serve_app.api.openapi > tests/openapi.json
    assert json.loads(SNAPSHOT.read_bytes()) == json.loads(openapi_json())
    assert SNAPSHOT.read_bytes() == openapi_json()


async def test_the_document_is_served(fakes: FakeServices) -> None:
    async with fakes.client() as client:
        response = await client.get("/openapi.json")
    assert response.json() == json.loads(SNAPSHOT.read_bytes())
