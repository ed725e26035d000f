"""Which stage keeps requests waiting under the present load, and what would help. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deployments.telemetry import INGRESS
from serve_app.stage_figures import Bottleneck, DeploymentReport, NodeState, StageReport

# Waiting grows without bound as a server's utilisation nears 1; from here on it is what makes the latency.
SATURATED = 0.8
# Fewer calls than this waiting on average is no queue.
QUEUE = 0.5
NODE_FULL_PERCENT = 90.0

ByStage = Mapping[str, Sequence[DeploymentReport]]


@dataclass(frozen=True, slots=True)
class _Suspect:
    deployment: DeploymentReport
    waiting: float


def find_bottleneck(stages: Sequence[StageReport], by_stage: ByStage, nodes: Sequence[NodeState]) -> Bottleneck | None:
    """The bottleneck; None where nothing was asked.

    Of the deployments that are busy nearly all the time it is the one that most calls wait for: in a queueing network
    that is where more capacity shortens the wait. `by_stage` has the deployments of each stage and of the ingress.
    """
    if not any(stage.rate_per_s for stage in stages):
        return None
    suspects = [
        _Suspect(max(by_stage[stage.stage], key=lambda deployment: deployment.utilisation), stage.waiting)
        for stage in stages
        if by_stage.get(stage.stage)
    ]
    suspects += [_Suspect(deployment, _transport(stages, by_stage)) for deployment in by_stage.get(INGRESS, ())]
    saturated = [
        suspect for suspect in suspects if suspect.deployment.utilisation >= SATURATED and suspect.waiting >= QUEUE
    ]
    if not saturated:
        return _slowest(stages, by_stage)
    worst = max(saturated, key=lambda suspect: (suspect.waiting, suspect.deployment.utilisation))
    found = worst.deployment
    full = _full(nodes)
    advice = (
        "every node's CPUs are in use, so another replica needs another node"
        if full
        else f"add a replica of {found.deployment}"
    )
    reason = (
        f"{found.deployment} has work in hand for {found.utilisation:.0%} of the time and {worst.waiting:.1f} calls "
        f"wait for it on average; {advice}"
    )
    return Bottleneck(found.stage, found.deployment, True, found.utilisation, worst.waiting, reason, found.deployment)


def _slowest(stages: Sequence[StageReport], by_stage: ByStage) -> Bottleneck:
    slowest = max(stages, key=lambda stage: stage.rate_per_s * stage.mean_s)
    deployment = next((one.deployment for one in by_stage.get(slowest.stage, ())), None)
    reason = (
        f"no stage is saturated; {slowest.stage} takes longest, {slowest.mean_s * 1000:.1f} ms a call, of which "
        f"{slowest.compute_share:.0%} is computing: replicas would add throughput, not speed"
    )
    return Bottleneck(slowest.stage, deployment, False, slowest.utilisation, slowest.waiting, reason, None)


def _transport(stages: Sequence[StageReport], by_stage: ByStage) -> float:
    """Calls on their way, on average, to stages that have time for them: it is the ingress that keeps them waiting."""
    idle = [
        stage
        for stage in stages
        if all(deployment.utilisation < SATURATED for deployment in by_stage.get(stage.stage, ()))
    ]
    return sum(stage.queue_s * stage.rate_per_s for stage in idle)


def _full(nodes: Sequence[NodeState]) -> bool:
    loads = [node.cpu_percent for node in nodes if node.cpu_percent is not None]
    return bool(loads) and min(loads) >= NODE_FULL_PERCENT
