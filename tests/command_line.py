"""`raglane` as a process of its own, with a data directory and ports that no other test uses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.cli.environment import FIXED_PORTS
from serve_app.cli.processes import ProcessId
from serve_app.cli.state import ServerState, StateFile
from tests.ports import free_ports

READY_LINE = "raglane is ready at"

ONE_LINE_APP = """
from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Ingress:
    @api.get("/health/ready")
    def ready(self) -> dict:
        return {"status": "ready", "stages": {}}


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Broken:
    def __init__(self) -> None:
        raise ValueError("there is no model folder /nope")


app = Ingress.bind()
broken = Broken.bind()
"""


@dataclass
class CommandLine:
    """`raglane` with a data directory, ports and a working directory of its own."""

    directory: Path
    port: int
    environ: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state_file(self) -> StateFile:
        return StateFile(self.directory / "data")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "serve_app.cli.main", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def up(self, *arguments: str) -> list[str]:
        return ["up", "--port", str(self.port), *arguments]

    def config(self, application: str) -> list[str]:
        (self.directory / "one_line.py").write_text(ONE_LINE_APP)
        path = self.directory / f"{application}.yaml"
        path.write_text(f"applications: [{{name: test, route_prefix: /, import_path: 'one_line:{application}'}}]\n")
        return ["--config", str(path)]

    def start_in_foreground(self) -> subprocess.Popen[str]:
        """In a process group of its own, as a shell would; returns once it says that it is ready."""
        server = subprocess.Popen(
            self.command(*self.up(*self.config("app"))),
            cwd=self.directory,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if READY_LINE in line:
                return server
        raise AssertionError("".join(lines))

    def recorded(self) -> tuple[ServerState, list[ProcessId]]:
        """The state and everything that its server consists of."""
        state = self.state_file.read()
        assert state is not None
        assert state.processes
        return state, [state.server, *state.processes]


@contextmanager
def command_line(directory: Path) -> Iterator[CommandLine]:
    """A command line whose server, if one was started, is stopped at the end."""
    port, *fixed = free_ports(2 + len(FIXED_PORTS))
    environ = os.environ | {name: str(number) for (name, _, _), number in zip(FIXED_PORTS, fixed, strict=False)}
    environ["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"] = str(fixed[-1])
    environ["RAGLANE_DATA"] = str(directory / "data")
    environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(directory)])
    environ.pop("RAGLANE_URL", None)
    # Serve replaces a proxy that has not started after 5 s, and its start fails with it.
    environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    raglane = CommandLine(directory, port, environ)
    try:
        yield raglane
    finally:
        raglane.run("down", "--timeout", "0")
