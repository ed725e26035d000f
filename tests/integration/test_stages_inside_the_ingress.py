"""`lane.in_process`: the same answers with stages inside the ingress, and no deployments for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from tests.serving import StartApp, until_covered

DOCUMENTS = [
    {"id": "tides", "title": "Tides", "text": "The moon pulls the tides of the sea.", "metadata": {"year": 2001}},
    {"id": "bees", "title": "Bees", "text": "Bees make honey from nectar. A hive has one queen."},
    {"id": "iron", "title": "Iron", "text": "Iron rusts in moist air."},
]
EVERY_STAGE = ("search", "rerank", "generate")


def config(in_process: Sequence[str]) -> dict[str, Any]:
    lane = {"default_collection": "inside", "answer_cache": {"enabled": False}, "in_process": list(in_process)}
    return {"embedder": {"engine": "tests.engines:WordHashEncoder"}, "lane": lane}


def ask(url: str, question: str = "Who pulls the tides?", **more: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}/v1/answers", json={"question": question, **more}, timeout=60)
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


@pytest.fixture(scope="module")
def apart(start_app: StartApp) -> dict[str, Any]:
    """The answer with a deployment for each stage."""
    url = start_app(config(()))
    taken = httpx.post(f"{url}/v1/documents", json={"documents": DOCUMENTS}, timeout=60)
    assert len(taken.json()["indexed"]) == len(DOCUMENTS)
    until_covered(url, "inside")
    return ask(url)


@pytest.fixture(scope="module")
def url(apart: dict[str, Any], start_app: StartApp) -> str:
    assert apart["citations"]
    return start_app(config(EVERY_STAGE))


def test_the_answer_is_the_same(url: str, apart: dict[str, Any]) -> None:
    inside = ask(url)
    assert inside["answer"] == apart["answer"]
    assert inside["citations"] == apart["citations"]
    assert inside["degraded"] == []
    assert {row["stage"] for row in inside["timings"]} == {row["stage"] for row in apart["timings"]}


def test_a_stream_is_the_same(url: str, apart: dict[str, Any]) -> None:
    body = {"question": "Who pulls the tides?", "stream": True}
    with httpx.stream("POST", f"{url}/v1/answers", json=body, timeout=60) as response:
        events = response.read().decode()
    assert "event: done" in events
    assert "event: error" not in events


def test_filters_and_unknown_collections_are_still_refused_with_their_own_status(url: str) -> None:
    wrong = httpx.post(f"{url}/v1/search", json={"query": "tides", "filter": {"nope": 1}}, timeout=60)
    assert wrong.status_code == 400
    assert "nope" in wrong.json()["error"]["message"]
    assert httpx.post(f"{url}/v1/search", json={"query": "x", "collection": "nowhere"}, timeout=60).status_code == 404


def test_readiness_and_the_latency_report_know_the_stages(url: str) -> None:
    ask(url)
    ready = httpx.get(f"{url}/health/ready", timeout=60).json()
    assert {"Retriever", "Reranker", "Generator"} <= set(ready["stages"])
    assert ready["status"] == "ready"
    inside = {("Ingress", "search"), ("Ingress", "rerank"), ("Ingress", "generate"), ("Ingress", "ingress")}
    replaced = {"Retriever", "Reranker", "Generator"}
    for _ in range(20):
        report = httpx.get(f"{url}/v1/stages", params={"window_s": 0.2}, timeout=60).json()
        here = {(one["deployment"], one["stage"]) for one in report["deployments"]}
        # In so short a window a stage may not tell of itself, and one that was replaced may do so for the last time.
        if inside <= here and not replaced & {deployment for deployment, _ in here}:
            break
    assert inside <= here
    assert not replaced & {deployment for deployment, _ in here}
