"""A server with its telemetry off: it answers as ever, with timings, and exports nothing of its own."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
import ray

from tests.serving import StartApp


@pytest.fixture(scope="module")
def url(start_app: StartApp) -> str:
    url = start_app({"embedder": {"engine": "tests.engines:WordHashEncoder"}, "telemetry": {"enabled": False}})
    document = {"id": "tides", "text": "The moon pulls the tides of the sea."}
    taken = httpx.post(f"{url}/v1/documents", json={"documents": [document]}, timeout=60)
    assert taken.json()["indexed"] == ["tides"]
    return url


def test_answers_have_their_timings(url: str) -> None:
    answer: dict[str, Any] = httpx.post(f"{url}/v1/answers", json={"question": "what pulls tides?"}, timeout=60).json()
    assert {"embed", "search", "rerank", "generate"} <= {row["stage"] for row in answer["timings"]}


def test_there_is_no_latency_report_and_the_error_says_why(url: str) -> None:
    response = httpx.get(f"{url}/v1/stages", timeout=60)
    assert response.status_code == 404
    assert "telemetry.enabled" in response.json()["error"]["message"]


def test_nothing_of_raglane_is_among_the_metrics_of_ray(url: str) -> None:
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    for _ in range(300):
        page = httpx.get(address, timeout=30).text
        # Serve's own come with the requests; a replica's would have come when it started.
        if "ray_serve_deployment_processing_latency_ms" in page:
            break
        time.sleep(0.2)
    else:
        raise AssertionError("Serve exports nothing either")
    assert "ray_raglane_" not in page
