"""The application on a real Ray Serve, without HAProxy: the end-to-end tests run with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from tests.ports import free_port

if TYPE_CHECKING:
    from ray.serve import Application

    from serve_app.config import AppConfig

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
# Serve replaces a proxy that has not started after 5 s, and its start fails with it.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

# No stage is left out, called unready or reported late because the machine was paused for some seconds.
PATIENT: dict[str, dict[str, Any]] = {
    "http": {"readiness_timeout_s": 30, "stages_patience_s": 30},
    "lane": {"default_timeout_s": 120, "embed_timeout_s": 30, "rerank_timeout_s": 30},
}


class StartApp(Protocol):
    """Deploys the application that `build` makes of a config, `build_app` if left out, and returns its URL.

    Called again, it brings the running application to the new config.
    """

    def __call__(self, config: dict[str, Any], build: Callable[[AppConfig], Application] | None = None) -> str: ...


def patient(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the limits of PATIENT where it sets none itself."""
    return config | {section: limits | config.get(section, {}) for section, limits in PATIENT.items()}


def until_covered(url: str, collection: str) -> dict[str, float]:
    """Wait until every index of the collection holds all of its chunks; the writer has nothing left to do then.

    Maintenance between two answers would change the scores of the second.
    """
    for _ in range(240):
        # Without the collection where the indexer took longer than a probe waits.
        ready = httpx.get(f"{url}/health/ready", timeout=60)
        coverage: dict[str, float] = ready.json()["index_coverage"].get(collection, {})
        if set(coverage.values()) == {1.0}:
            return coverage
        time.sleep(0.25)
    raise AssertionError(f"the indexes still lack chunks: {coverage}")


@contextmanager
def serving(store_folder: Path, env_vars: dict[str, str] | None = None) -> Iterator[StartApp]:
    """A Serve of its own, with its collections in `store_folder` and `env_vars` in every replica."""
    import ray
    from ray import serve

    from serve_app import build_app
    from serve_app.config import AppConfig

    # Logical CPUs: the stages wait for each other more than they compute.
    ray.init(
        address="local",
        num_cpus=16,
        include_dashboard=False,
        logging_level="warning",
        runtime_env={"env_vars": env_vars or {}},
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})

    def start(config: dict[str, Any], build: Callable[[AppConfig], Application] | None = None) -> str:
        app_config = AppConfig.model_validate({"store": {"uri": str(store_folder)}} | patient(config))
        serve.run((build or build_app)(app_config), name="raglane", route_prefix="/")
        return f"http://127.0.0.1:{port}"

    try:
        yield start
    finally:
        serve.shutdown()
        ray.shutdown()
