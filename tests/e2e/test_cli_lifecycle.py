"""The life of a server by the command line: real Ray, real HAProxy, real signals.

The first test runs the `local` profile; the others a Serve application of one line, because they are about processes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.processes import ProcessId, port_is_free
from tests.command_line import CommandLine, command_line


@pytest.fixture
def raglane(tmp_path: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path) as raglane:
        yield raglane


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
    by_words: Any = json.loads(raglane.run("search", "melting iron", "--mode", "text", "--no-rewrite", "--json").stdout)
    assert "1538 degrees" in by_words["results"][0]["text"]
    assert {row["branch"] for row in by_words["timings"] if row["stage"] == "search"} == {"text", "fuse"}
    asked = raglane.run("ask", "At how many degrees does water boil?")
    assert asked.returncode == 0, asked.stderr
    assert "100 degrees" in asked.stdout
    assert "[1]" in asked.stdout
    streamed = raglane.run("ask", "At how many degrees does water boil?", "--stream", "--no-cache")
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
    output, _ = server.communicate(timeout=300)
    assert server.returncode == 0, output
    assert output.strip().endswith("stopped")
    assert_nothing_is_left(raglane, processes)


def test_what_a_killed_server_leaves_is_named_by_up_and_stopped_by_down(raglane: CommandLine) -> None:
    server = raglane.start_in_foreground()
    state, processes = raglane.recorded()
    server.kill()
    server.communicate(timeout=300)

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
