"""A real Ray Serve for the tests of a module, started without HAProxy: the end-to-end tests start it with."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")

StartApp = Callable[[dict[str, Any]], str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def start_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartApp]:
    """Deploys the application with the given config on a Serve of its own and returns its URL."""
    import ray
    from ray import serve

    from serve_app import build_app
    from serve_app.config import AppConfig

    # Logical CPUs: the stages wait for each other more than they compute.
    ray.init(address="local", num_cpus=16, include_dashboard=False, logging_level="warning")
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})

    def start(config: dict[str, Any]) -> str:
        store = {"uri": str(tmp_path_factory.mktemp("store"))}
        app = build_app(AppConfig.model_validate({"store": store} | config))
        serve.run(app, name="raglane", route_prefix="/")
        return f"http://127.0.0.1:{port}"

    yield start
    serve.shutdown()
    ray.shutdown()
