"""The foreground server: owns a Ray of its own, deploys a Serve config file on it, and takes both down again."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import FrameType
from typing import Any

from deployments.errors import ConfigError
from serve_app.cli.client import Client
from serve_app.cli.deploy_status import (
    cause_and_tail,
    failure_message,
    is_running,
    progress_line,
    unschedulable_message,
)
from serve_app.cli.exits import Failure
from serve_app.cli.processes import ProcessId, descendants, haproxy_config_of, identify, stop_haproxies, stop_processes
from serve_app.cli.profile import Document
from serve_app.cli.render import Steps, print_note
from serve_app.cli.state import ServerState, StateFile
from serve_app.serve_file import check_serve_document, custom_resources

POLL_INTERVAL_S = 0.2
# Serve reports a replica as unschedulable after 30 s; on a machine of our own no more resources will ever come.
UNSCHEDULABLE_PATIENCE_S = 60.0
SERVE_SHUTDOWN_TIMEOUT_S = 6.0
LEFTOVER_GRACE_S = 1.0
# Stages want fractions of a CPU to be placed; a small machine still has to place all of them.
MIN_LOGICAL_CPUS = 4


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What to serve: a checked Serve config document with its HTTP address, and where to write about it."""

    document: Document
    profile: str
    state_file: StateFile
    verbose: bool = False

    @property
    def host(self) -> str:
        return str(self.document["http_options"]["host"])

    @property
    def port(self) -> int:
        return int(self.document["http_options"]["port"])

    @property
    def url(self) -> str:
        """Where clients on this machine reach the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"


class Server:
    """One server in this process. `start` returns when it is ready; `stop` leaves nothing behind, whenever it comes."""

    def __init__(self, plan: ServerPlan) -> None:
        self.plan = plan
        self._state = ServerState(
            server=ProcessId.current(),
            status="starting",
            url=plan.url,
            port=plan.port,
            profile=plan.profile,
            version=version("raglane"),
            started_at=time.time(),
        )
        self._serve_client: Any = None
        self._family: list[Any] = []
        self._logs = ""
        self._stopping = False

    def start(self, progress: Steps) -> None:
        """Raises Failure with the cause if the server will not become ready."""
        self.plan.state_file.write(self._state)
        self._handle_signals()
        progress.update("importing Ray Serve")
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            self._bring_up(self._validated_schema(), progress)
        except (RayError, RayServeException, RuntimeError, OSError, ValueError) as error:
            raise Failure(f"Ray Serve failed: {cause_and_tail(str(error))}", self._where_logs_are()) from error

    def _bring_up(self, schema: Any, progress: Steps) -> None:
        progress.update("starting Ray")
        self._start_ray()
        progress.update("starting Serve")
        self._deploy(schema)
        self._record_processes()
        self._wait_until_running(progress)
        self._wait_until_ready(progress)
        self._state = replace(self._state, status="ready")
        self._record_processes()

    def wait(self) -> None:
        """Serve until a signal interrupts; raises Failure if Ray dies."""
        backbone = [process for process in descendants() if process.name() in ("raylet", "gcs_server")]
        while all(process.is_running() and process.status() != "zombie" for process in backbone):
            time.sleep(1)
        raise Failure("Ray has died.", self._where_logs_are())

    def stop(self, progress: Steps) -> None:
        """Finish what is in flight, then stop Serve, Ray and HAProxy. A second signal skips to the end."""
        self._stopping = True
        self._family = descendants()
        progress.update("stopping Serve")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            if self._serve_client is not None:
                self._serve_client.shutdown(timeout_s=SERVE_SHUTDOWN_TIMEOUT_S)
        progress.update("stopping Ray")
        if (ray := sys.modules.get("ray")) is not None:
            ray.shutdown()
        self._sweep(LEFTOVER_GRACE_S)

    def _sweep(self, grace_s: float) -> None:
        stop_processes([process for process in self._family if process.is_running()], grace_s)
        stop_haproxies(self._state.haproxy_config)
        self.plan.state_file.remove()

    def _handle_signals(self) -> None:
        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if not self._stopping:
                self._stopping = True
                raise KeyboardInterrupt
            self._family += [process for process in descendants() if process not in self._family]
            self._sweep(grace_s=0)
            os._exit(1)

        signal.signal(signal.SIGINT, on_signal)
        signal.signal(signal.SIGTERM, on_signal)

    def _validated_schema(self) -> Any:
        from ray.serve.schema import ServeDeploySchema

        try:
            check_serve_document(self.plan.document)
        except ConfigError as error:
            problems = "".join(f"\n  {line}" for line in error.message.splitlines())
            raise Failure(f"the Serve config file is invalid:{problems}") from None
        return ServeDeploySchema.model_validate(self.plan.document)

    def _start_ray(self) -> None:
        import ray

        # As `serve run` does: applications may live in the directory that the command is started from.
        sys.path.insert(0, os.getcwd())
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray.init(
            address="local",
            namespace="serve",
            num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
            # On a cluster these keep GPU stages apart; one machine has to be all of those places.
            resources=dict.fromkeys(custom_resources(self.plan.document), 1000),
            include_dashboard=False,
            log_to_driver=self.plan.verbose,
            logging_level=logging.ERROR,
        )
        # Ray has put its own SIGTERM handler in place of ours.
        self._handle_signals()
        self._logs = ray._private.worker._global_node.get_logs_dir_path()
        self._check_gpus(ray.cluster_resources().get("GPU", 0.0))

    def _check_gpus(self, num_gpus: float) -> None:
        for application in self.plan.document["applications"]:
            for deployment in application.get("deployments") or []:
                wanted = (deployment.get("ray_actor_options") or {}).get("num_gpus") or 0
                if wanted > num_gpus:
                    raise Failure(
                        f"{deployment.get('name')} needs {wanted:g} GPU, this machine has {num_gpus:g}.",
                        "Use another profile, or set its num_gpus in your own file and give that with --config.",
                    )

    def _deploy(self, schema: Any) -> None:
        from ray.serve._private.api import serve_start

        # The options and the order of `serve run FILE`; serve.start() has no way to pass the file's grpc_options.
        self._serve_client = serve_start(
            http_options=schema.http_options.model_dump(),
            proxy_location=schema.proxy_location,
            grpc_options=schema.grpc_options.model_dump(),
            global_logging_config=schema.logging_config,
        )
        self._serve_client.deploy_apps(schema)

    def _applications(self) -> list[Any]:
        from ray import serve

        return list(serve.status().applications.values())

    def _wait_until_running(self, progress: Steps) -> None:
        give_up_at: float | None = None
        while not is_running(applications := self._applications()):
            progress.update(progress_line(applications))
            if cause := failure_message(applications):
                raise Failure(cause, self._where_logs_are())
            stuck = unschedulable_message(applications)
            now = time.monotonic()
            give_up_at = (give_up_at or now + UNSCHEDULABLE_PATIENCE_S) if stuck else None
            if give_up_at is not None and now > give_up_at:
                raise Failure(f"{stuck}", "Give the machine more, or ask for less in the config file.")
            time.sleep(POLL_INTERVAL_S)

    def _wait_until_ready(self, progress: Steps) -> None:
        with Client(self.plan.url) as client:
            while True:
                is_ready, stages = client.readiness()
                if is_ready:
                    return
                progress.update(f"waiting for {', '.join(_not_ready(stages)) or 'the HTTP ingress'}")
                if cause := failure_message(self._applications()):
                    raise Failure(cause, self._where_logs_are())
                time.sleep(POLL_INTERVAL_S)

    def _where_logs_are(self) -> str:
        return f"\nAll logs: {self._logs}" if self._logs else ""

    def _record_processes(self) -> None:
        family = descendants()
        for process in family:
            if config_path := haproxy_config_of(process):
                self._state = replace(self._state, haproxy=ProcessId.of(process), haproxy_config=config_path)
        self._state = replace(self._state, processes=identify(family))
        self.plan.state_file.write(self._state)


def _not_ready(stages: dict[str, str]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in stages.items() if reason != "ready"]


@contextlib.contextmanager
def serving(plan: ServerPlan) -> Iterator[Server]:
    """A ready server inside the block; stopped when the block is left in any way, a signal included."""
    server = Server(plan)
    try:
        with Steps() as progress:
            server.start(progress)
        yield server
    finally:
        with Steps() as progress:
            server.stop(progress)
        print_note("stopped")
