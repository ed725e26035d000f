"""Which stage is named the bottleneck, why, and what is advised."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from deployments.contracts import STAGES
from serve_app.bottleneck import find_bottleneck
from serve_app.stage_figures import Bottleneck, DeploymentReport, NodeState, StageReport

DEPLOYMENTS = {
    "embed": "Embedder",
    "search": "Retriever",
    "rerank": "Reranker",
    "generate": "Generator",
    "ingress": "Ingress",
}


def stage(
    name: str, mean_s: float = 0.01, rate: float = 10.0, queue_s: float = 0.0, wait_s: float = 0.0
) -> StageReport:
    return StageReport(
        stage=name,
        count=round(rate),
        seconds_total=rate * mean_s,
        rate_per_s=rate,
        mean_s=mean_s,
        p50_s=mean_s,
        p90_s=mean_s,
        p99_s=mean_s,
        queue_s=queue_s,
        batch_wait_s=wait_s,
        compute_s=mean_s - queue_s - wait_s,
        queue_share=queue_s / mean_s,
        batch_wait_share=wait_s / mean_s,
        compute_share=1 - (queue_s + wait_s) / mean_s,
        batch_size=1.0,
        utilisation=None,
        waiting=rate * (queue_s + wait_s),
        branches=(),
    )


def find(
    stages: Mapping[str, StageReport], busy: Mapping[str, float], nodes: tuple[NodeState, ...] = ()
) -> Bottleneck | None:
    by_stage = {
        name: [DeploymentReport(deployment, name, 1, busy.get(name, 0.1), 0.1, None, None, None)]
        for name, deployment in DEPLOYMENTS.items()
    }
    return find_bottleneck([stages.get(name, stage(name)) for name in STAGES], by_stage, nodes)


def node(cpu_percent: float | None) -> NodeState:
    return NodeState("n", "10.0.0.1", 8080, "", cpu_percent)


def test_nothing_asked_is_no_bottleneck() -> None:
    assert find_bottleneck([stage(name, rate=0.0) for name in STAGES], {}, ()) is None


def test_without_a_saturated_stage_the_slowest_is_named_and_no_replica_advised() -> None:
    found = find({"generate": stage("generate", mean_s=0.8)}, {})
    assert found is not None
    assert (found.stage, found.saturated, found.next_replica) == ("generate", False, None)
    assert "800.0 ms" in found.reason


@pytest.mark.parametrize(
    ("stages", "busy", "named"),
    [
        ({"embed": stage("embed", 0.3, wait_s=0.25)}, {"embed": 0.95}, "Embedder"),
        ({"rerank": stage("rerank", 0.3, queue_s=0.2, wait_s=0.05)}, {"rerank": 0.9, "embed": 0.5}, "Reranker"),
        (
            {"embed": stage("embed", 0.3, wait_s=0.1), "rerank": stage("rerank", 0.9, wait_s=0.8)},
            {"embed": 0.99, "rerank": 0.85},
            "Reranker",
        ),
        ({"search": stage("search", 0.5, queue_s=0.4)}, {"ingress": 0.97, "search": 0.3}, "Ingress"),
    ],
    ids=["one busy stage", "queue and wait together", "the longer queue, not the busier", "the ingress holds calls up"],
)
def test_the_saturated_deployment_that_most_calls_wait_for_is_named(
    stages: Mapping[str, StageReport], busy: Mapping[str, float], named: str
) -> None:
    found = find(stages, busy)
    assert found is not None
    assert (found.deployment, found.next_replica, found.saturated) == (named, named, True)
    assert named in found.reason


def test_a_long_stage_that_nobody_waits_for_is_not_saturated_however_busy() -> None:
    found = find({"generate": stage("generate", mean_s=2.0, rate=0.4)}, {"generate": 0.99})
    assert found is not None
    assert not found.saturated


@pytest.mark.parametrize(("loads", "needs_node"), [((97.0, 95.0), True), ((97.0, 20.0), False), ((None,), False)])
def test_where_every_node_is_full_a_replica_is_said_to_need_another_node(
    loads: tuple[float | None, ...], needs_node: bool
) -> None:
    found = find({"embed": stage("embed", 0.3, wait_s=0.25)}, {"embed": 0.95}, tuple(map(node, loads)))
    assert found is not None
    assert ("another node" in found.reason) is needs_node
    assert found.next_replica == "Embedder"
