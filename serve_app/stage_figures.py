"""What the latency report says of the stages, the deployments behind them, the nodes and the bottleneck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeState:
    """What reading a node's metrics came to: `error` is empty where it went well; `cpu_percent` None where unknown."""

    node_id: str
    address: str
    metrics_port: int
    error: str
    cpu_percent: float | None


@dataclass(frozen=True, slots=True)
class BranchReport:
    """The calls of one branch of a stage; see StageReport."""

    branch: str
    count: int
    seconds_total: float
    rate_per_s: float
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class StageReport:
    """One stage as the lane saw it. `count` and `seconds_total` are since the start, the rest is of the window.

    `queue_s`, `batch_wait_s` and `compute_s` are means of a call and add up to `mean_s`; shares are of it. `batch_size`
    is the mean over calls of the largest batch that a call was in. `utilisation` is the share of the time in which a
    replica had work in hand, of a stage that runs in the ingress the share that it took of the ingress; None where
    nothing tells. `waiting` is how many calls wait for the stage at a time, on average.
    """

    stage: str
    count: int
    seconds_total: float
    rate_per_s: float
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    queue_s: float
    batch_wait_s: float
    compute_s: float
    queue_share: float
    batch_wait_share: float
    compute_share: float
    batch_size: float
    utilisation: float | None
    waiting: float
    branches: tuple[BranchReport, ...]


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """The replicas of one deployment in the window, means over them.

    `utilisation` is the share of the time with work in hand, of the ingress that of its CPU; `cpu` the cores that a
    replica's process used. The batch figures are None where the deployment makes no batches.
    """

    deployment: str
    stage: str
    replicas: int
    utilisation: float
    cpu: float
    rows_per_batch: float | None
    tokens_per_s: float | None
    padding_share: float | None


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The stage that makes requests wait or, where none is saturated, the one that takes them longest.

    `next_replica` names the deployment to give one more replica to, None where that would be of no help.
    """

    stage: str
    deployment: str | None
    saturated: bool
    utilisation: float | None
    waiting: float
    reason: str
    next_replica: str | None


@dataclass(frozen=True, slots=True)
class StagesReport:
    """`window_s` is the time that rates, means and percentiles are of: the whole time since the start where none was
    asked for."""

    window_s: float
    stages: tuple[StageReport, ...]
    deployments: tuple[DeploymentReport, ...]
    bottleneck: Bottleneck | None
    nodes: Sequence[NodeState]
