"""Two truths that must agree: what answers tell of their stages, and what Ray's metrics say of the same calls."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.telemetry import INGRESS, metric_names
from tests.serving import StartApp

DOCUMENTS = [{"id": f"d{number}", "text": f"Document {number} speaks of subject {number % 7}."} for number in range(40)]
QUESTIONS = [f"what is subject {number % 7} and who speaks of {number}?" for number in range(48)]


@pytest.fixture(scope="module")
def url(start_app: StartApp) -> str:
    # Answers from a cache call no stage.
    lane = {"default_collection": "notes", "answer_cache": {"enabled": False}}
    url = start_app({"embedder": {"engine": "tests.engines:WordHashEncoder"}, "lane": lane})
    taken = httpx.post(f"{url}/v1/documents", json={"documents": DOCUMENTS}, timeout=60)
    assert len(taken.json()["indexed"]) == len(DOCUMENTS)
    return url


@pytest.fixture(scope="module")
def timings(url: str) -> list[dict[str, Any]]:
    """The timings of all calls that all answers and searches so far tell of."""

    async def ask() -> list[dict[str, Any]]:
        slots = asyncio.Semaphore(8)

        async def one(http: httpx.AsyncClient, number: int, question: str) -> list[dict[str, Any]]:
            async with slots:
                if number % 2:
                    response = await http.post("/v1/search", json={"query": question})
                else:
                    response = await http.post("/v1/answers", json={"question": question})
                rows: list[dict[str, Any]] = response.raise_for_status().json()["timings"]
                return rows

        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            answers = await asyncio.gather(*(one(http, *asked) for asked in enumerate(QUESTIONS)))
        return [row for rows in answers for row in rows]

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def report(url: str, timings: list[dict[str, Any]]) -> dict[str, Any]:
    assert timings
    for _ in range(20):
        report: dict[str, Any] = httpx.get(f"{url}/v1/stages", timeout=60).raise_for_status().json()
        # The ingress' own figures are fresh; the other processes tell theirs a little later.
        if len(report["deployments"]) == 6 and any(one["rows_per_batch"] for one in report["deployments"]):
            break
    return report


def test_counts_are_the_same_and_sums_within_a_hundredth(timings: list[dict[str, Any]], report: dict[str, Any]) -> None:
    in_band: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in timings:
        in_band[row["stage"]].append(row)
    assert set(in_band) == {stage["stage"] for stage in report["stages"]}
    for stage in report["stages"]:
        rows = in_band[stage["stage"]]
        assert stage["count"] == len(rows)
        assert stage["seconds_total"] == pytest.approx(sum(row["total_s"] for row in rows), rel=0.01)
        for part in ("queue_s", "batch_wait_s", "compute_s", "batch_size"):
            assert stage[part] == pytest.approx(sum(row[part] for row in rows) / len(rows), rel=0.01)


def test_the_branches_of_a_stage_add_up_to_it(report: dict[str, Any]) -> None:
    search = next(stage for stage in report["stages"] if stage["stage"] == "search")
    assert {"text", "vector", "fuse"} <= {branch["branch"] for branch in search["branches"]}
    assert sum(branch["count"] for branch in search["branches"]) == search["count"]
    assert sum(branch["seconds_total"] for branch in search["branches"]) == pytest.approx(search["seconds_total"])


def test_every_deployment_and_the_node_are_there(report: dict[str, Any]) -> None:
    names = {deployment["deployment"] for deployment in report["deployments"]}
    assert names == {"Ingress", "Embedder", "Retriever", "Indexer", "Reranker", "Generator"}
    for deployment in report["deployments"]:
        assert deployment["replicas"] == 1
        assert 0 <= deployment["utilisation"] <= 1
    embedder = next(one for one in report["deployments"] if one["deployment"] == "Embedder")
    assert embedder["rows_per_batch"] >= 1
    assert 0 <= embedder["padding_share"] < 1
    (node,) = report["nodes"]
    assert node["error"] == ""
    assert report["bottleneck"]["stage"] in {*(stage["stage"] for stage in report["stages"]), INGRESS}


def test_a_window_without_requests_has_no_bottleneck_and_loses_no_counts(url: str, report: dict[str, Any]) -> None:
    quiet = httpx.get(f"{url}/v1/stages", params={"window_s": 0.5}, timeout=60).raise_for_status().json()
    assert quiet["bottleneck"] is None
    assert [stage["count"] for stage in quiet["stages"]] == [stage["count"] for stage in report["stages"]]
    assert all(stage["rate_per_s"] == 0 for stage in quiet["stages"])


def test_what_ray_exports_has_the_names_and_labels_that_the_code_says(report: dict[str, Any]) -> None:
    (node,) = report["nodes"]
    added = {"deployment", "replica", "application"}
    always = {"ray_raglane_stage_count_total", "ray_raglane_requests_total", "ray_raglane_waiting"}
    for _ in range(100):
        page = httpx.get(f"http://{node['address']}:{node['metrics_port']}/metrics", timeout=30).text
        exported = {
            sample.name: set(sample.labels)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name.startswith("ray_raglane_")
        }
        # Ray drops a gauge that it was not told of for a while.
        if always <= set(exported):
            break
        time.sleep(0.2)
    known = metric_names()
    assert set(exported) <= set(known)
    for name, labels in exported.items():
        assert set(known[name]) | added <= labels, name
    assert always <= set(exported)
    # Serve's own stand beside them.
    assert "ray_serve_deployment_processing_latency_ms" in page
