"""The application on a real Ray Serve, without HAProxy: the end-to-end tests run with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ray.serve import Application

    from serve_app.config import AppConfig

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")


class StartApp(Protocol):
    """Deploys the application that `build` makes of a config, `build_app` if left out, and returns its URL.

    Called again, it brings the running application to the new config.
    """

    def __call__(self, config: dict[str, Any], build: Callable[[AppConfig], Application] | None = None) -> str: ...


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
        app_config = AppConfig.model_validate({"store": {"uri": str(store_folder)}} | config)
        serve.run((build or build_app)(app_config), name="raglane", route_prefix="/")
        return f"http://127.0.0.1:{port}"

    try:
        yield start
    finally:
        serve.shutdown()
        ray.shutdown()
