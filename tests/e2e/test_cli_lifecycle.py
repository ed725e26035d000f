"""The life of a server by the command line: real Ray, real HAProxy, real signals.

The first test runs the `local` profile; the others a Serve application of one line, because they are about processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.environment import FIXED_PORTS
from serve_app.cli.processes import ProcessId, port_is_free
from serve_app.cli.state import ServerState, StateFile

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


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in sockets]


@dataclass
class CommandLine:
    """`raglane` with a data directory, ports and a working directory of its own."""

    directory: Path
    port: int
    environ: dict[str, str]

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


@pytest.fixture
def raglane(tmp_path: Path) -> Iterator[CommandLine]:
    port, *fixed = free_ports(2 + len(FIXED_PORTS))
    environ = os.environ | {name: str(number) for (name, _, _), number in zip(FIXED_PORTS, fixed, strict=False)}
    environ["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"] = str(fixed[-1])
    environ["RAGLANE_DATA"] = str(tmp_path / "data")
    environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    environ.pop("RAGLANE_URL", None)
    command_line = CommandLine(tmp_path, port, environ)
    yield command_line
    command_line.run("down", "--timeout", "0")


def assert_nothing_is_left(raglane: CommandLine, processes: list[ProcessId]) -> None:
    assert [process.pid for process in processes if process.is_alive()] == []
    assert port_is_free("127.0.0.1", raglane.port)
    assert raglane.state_file.read() is None


def test_a_newcomers_first_steps_from_up_to_down(raglane: CommandLine) -> None:
    documents = raglane.directory / "documents"
    documents.mkdir()
    (documents / "water.md").write_text("# Water\n\nAt sea level water boils at 100 degrees Celsius.\n")
    (documents / "iron.txt").write_text("Iron melts at 1538 degrees Celsius.\n")

    up = raglane.run(*raglane.up("--detach"))
    assert up.returncode == 0, up.stderr
    _, processes = raglane.recorded()
    assert f"http://127.0.0.1:{raglane.port}" in up.stdout

    again = raglane.run(*raglane.up())
    assert (again.returncode, "already running" in again.stderr) == (3, True)

    ingested: Any = json.loads(raglane.run("ingest", str(documents), "--json").stdout)
    assert (ingested["documents"], ingested["replaced"], ingested["rejected"]) == (2, 0, [])
    repeated: Any = json.loads(raglane.run("ingest", str(documents), "--json").stdout)
    assert (repeated["documents"], repeated["replaced"]) == (2, 2)

    status: Any = json.loads(raglane.run("status", "--json").stdout)
    assert status["state"] == "ready"
    assert [(item["name"], item["num_documents"]) for item in status["collections"]] == [("docs", 2)]

    found: Any = json.loads(raglane.run("search", "boiling point of water", "-k", "1", "--json").stdout)
    assert "100 degrees" in found["results"][0]["text"]
    asked = raglane.run("ask", "At how many degrees does water boil?")
    assert asked.returncode == 0, asked.stderr
    assert "100 degrees" in asked.stdout
    assert "[1]" in asked.stdout
    streamed = raglane.run("ask", "At how many degrees does water boil?", "--stream")
    assert streamed.returncode == 0, streamed.stderr
    assert "100 degrees" in streamed.stdout

    down = raglane.run("down")
    assert down.returncode == 0, down.stderr
    assert_nothing_is_left(raglane, processes)
    assert raglane.run("status").returncode == 3


def test_ctrl_c_stops_everything_that_up_has_started(raglane: CommandLine) -> None:
    server = raglane.start_in_foreground()
    _, processes = raglane.recorded()
    os.killpg(server.pid, signal.SIGINT)
    output, _ = server.communicate(timeout=60)
    assert server.returncode == 0, output
    assert output.strip().endswith("stopped")
    assert_nothing_is_left(raglane, processes)


def test_what_a_killed_server_leaves_is_named_by_up_and_stopped_by_down(raglane: CommandLine) -> None:
    server = raglane.start_in_foreground()
    state, processes = raglane.recorded()
    server.kill()
    server.communicate(timeout=60)

    up = raglane.run(*raglane.up(*raglane.config("app")))
    assert up.returncode == 3
    assert "left processes running" in up.stderr
    assert "raglane down" in up.stderr

    down = raglane.run("down")
    assert (down.returncode, down.stdout) == (0, f"stopped the server at {state.url}\n")
    assert_nothing_is_left(raglane, processes)


def test_an_application_that_can_not_start_ends_up_with_its_cause(raglane: CommandLine) -> None:
    up = raglane.run(*raglane.up("--detach", *raglane.config("broken")))
    assert up.returncode == 1
    assert "error: Broken failed to start: ValueError: there is no model folder /nope" in up.stderr
    assert_nothing_is_left(raglane, [])
