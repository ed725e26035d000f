"""/health/live, /health/ready, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from deployments.errors import StageUnavailable
from deployments.remote import Handle, readiness
from serve_app.api.app import create_api
from serve_app.api.openapi import openapi_json
from serve_app.api.services import HttpConfig
from tests.api import FakeServices
from tests.handles import LocalHandle

# The stages that are ready answer in time by the loop's clock, however slow the machine is.
pytestmark = pytest.mark.virtual_time

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
        await asyncio.sleep(2)
        unknown = (await client.get("/health/ready")).json()["index_coverage"]
    assert list(covered) == ["docs"]
    assert all(share == 1.0 for share in covered["docs"].values())
    assert unknown == {}


async def test_many_probes_at_once_ask_the_stages_once(fakes: FakeServices) -> None:
    asked = 0

    async def slow() -> Mapping[str, str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(3)
        return {"embed": f"asked {asked}"}

    api = create_api(replace(fakes.services(), readiness=slow))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        together = await asyncio.gather(*(client.get("/health/ready") for _ in range(5)))
        await asyncio.sleep(2)
        later = await client.get("/health/ready")
    assert {response.json()["stages"]["embed"] for response in together} == {"asked 1"}
    assert later.json()["stages"]["embed"] == "asked 2"


async def test_the_answer_to_many_probes_is_the_child_of_none(fakes: FakeServices) -> None:
    request_of = contextvars.ContextVar("request_of", default="nobody")

    async def who() -> Mapping[str, str]:
        return {"embed": request_of.get()}

    api = create_api(replace(fakes.services(), readiness=who))
    request_of.set("the first")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        response = await client.get("/health/ready")
    assert response.json()["stages"] == {"embed": "nobody"}


async def test_what_is_not_ready_is_named(fakes: FakeServices) -> None:
    fakes.readiness["generate"] = "the model is being loaded"
    async with fakes.client() as client:
        response = await client.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["status"] == "not ready"
    assert response.json()["stages"]["generate"] == "the model is being loaded"


async def test_a_stage_that_does_not_answer_is_named_beside_those_that_do(fakes: FakeServices) -> None:
    class Embedder:
        async def describe(self) -> str:
            return "here"

    class Generator:
        async def describe(self) -> str:
            await asyncio.sleep(30)
            return "too late"

    handles: dict[str, Handle] = {"Embedder": LocalHandle(Embedder()), "Generator": LocalHandle(Generator())}
    timeout_s = fakes.http.readiness_timeout_s
    api = create_api(replace(fakes.services(), readiness=lambda: readiness(handles, timeout_s)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://raglane") as client:
        response = await client.get("/health/ready")
    assert response.status_code == 503
    stages = response.json()["stages"]
    assert stages["Embedder"] == "ready"
    assert "no answer within 0.02 s" in stages["Generator"]


def test_the_committed_openapi_document_is_the_served_one() -> None:
    # Made anew by: python -m serve_app.api.openapi > tests/openapi.json
    assert json.loads(SNAPSHOT.read_bytes()) == json.loads(openapi_json())
    assert SNAPSHOT.read_bytes() == openapi_json()


async def test_the_document_is_served(fakes: FakeServices) -> None:
    async with fakes.client() as client:
        response = await client.get("/openapi.json")
    assert response.json() == json.loads(SNAPSHOT.read_bytes())
