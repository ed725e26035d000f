"""Servers under comparison: how their commands are read, and that nothing of them is left when they are stopped."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from benchmarks import systems
from benchmarks.comparison import System
from benchmarks.experiment import ExperimentError
from benchmarks.systems import MissingVariable, resolve, running
from tests.ports import free_port

# Answers 200 to anything, after `preparation` has run.
SERVER = """
import os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass

{preparation}
print("serving", flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
# Children that a server leaves behind: one in its session, which ignores signals, and one in a session of its own.
LEAVES_CHILDREN = """
deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print(flush=True); time.sleep(600)"
for new_session in (False, True):
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=new_session)
    child.stdout.readline()
    with open(sys.argv[2], "a") as file:
        file.write(f"{child.pid}\\n")
"""


@pytest.fixture
def port() -> int:
    return free_port()


def server(folder: Path, port: int, preparation: str = "", arguments: Sequence[str] = (), **changes: Any) -> System:
    script = folder / "server.py"
    script.write_text(SERVER.replace("{preparation}", preparation), encoding="utf-8")
    command = ("python", str(script), str(port), *arguments)
    return System(command=command, url=f"http://127.0.0.1:{port}", **changes)


def start(folder: Path, system: System, timeout_s: float = 30.0, notes: list[str] | None = None) -> Any:
    return running("one", system, folder / "log", timeout_s, ([] if notes is None else notes).append)


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_system_answers_inside_the_block_and_has_let_go_of_its_port_after_it(tmp_path: Path, port: int) -> None:
    notes: list[str] = []
    with start(tmp_path, server(tmp_path, port), notes=notes):
        socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert notes == []


def test_children_that_a_server_leaves_are_killed_and_told_of(tmp_path: Path, port: int) -> None:
    pids_file, notes = tmp_path / "pids", list[str]()
    with start(tmp_path, server(tmp_path, port, LEAVES_CHILDREN, [str(pids_file)]), notes=notes):
        pids = [int(line) for line in pids_file.read_text().split()]
        assert all(map(is_alive, pids))
    assert not any(map(is_alive, pids))
    (note,) = notes
    assert "had to be killed" in note


def test_a_server_that_ignores_signals_is_killed(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "INTERRUPT_PATIENCE_S", 0.2)
    monkeypatch.setattr(systems, "TERMINATE_PATIENCE_S", 0.2)
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    notes: list[str] = []
    with start(tmp_path, server(tmp_path, port, deaf), notes=notes):
        pass
    assert len(notes) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_an_interrupt_stops_the_system(tmp_path: Path, port: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        with start(tmp_path, server(tmp_path, port)):
            raise KeyboardInterrupt
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_that_ends_while_starting_is_told_of_with_its_last_words(tmp_path: Path, port: int) -> None:
    with pytest.raises(ExperimentError, match=r"code 3 while starting(.|\n)*no model at hand") as caught:
        with start(tmp_path, server(tmp_path, port, "print('no model at hand'); sys.exit(3)")):
            pass
    assert str(tmp_path / "log") in str(caught.value)


def test_a_server_that_is_not_ready_in_time_is_stopped(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, launched = systems._launch, list[int]()

    def noted(*arguments: Any) -> Any:
        process = launch(*arguments)
        launched.append(process.pid)
        return process

    monkeypatch.setattr(systems, "_launch", noted)
    with pytest.raises(ExperimentError, match=r"not ready within 3 s(.|\n)*log"):
        with start(tmp_path, server(tmp_path, port, "time.sleep(600)"), timeout_s=3):
            pass
    assert [is_alive(pid) for pid in launched] == [False]


def test_a_port_that_is_taken_is_told_of_before_anything_starts(tmp_path: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        system = server(tmp_path, port, ports=(other.getsockname()[1],))
        with pytest.raises(ExperimentError, match=f"port {other.getsockname()[1]}"):
            with start(tmp_path, system):
                pass
    assert not (tmp_path / "log").exists()


def test_setup_runs_once_the_server_is_ready(tmp_path: Path, port: int) -> None:
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port})); print('set up')"
    with start(tmp_path, server(tmp_path, port, setup=(("python", "-c", probe),))):
        assert (tmp_path / "log").read_text().splitlines() == ["serving", "set up"]


def test_setup_that_fails_ends_the_system(tmp_path: Path, port: int) -> None:
    system = server(tmp_path, port, setup=(("python", "-c", "raise SystemExit('no corpus')"),))
    with pytest.raises(ExperimentError, match=r"setup of 'one'(.|\n)*no corpus"):
        with start(tmp_path, system):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_program_that_is_not_there_is_named(tmp_path: Path, port: int) -> None:
    system = System(command=("/no/such/program",), url=f"http://127.0.0.1:{port}")
    with pytest.raises(ExperimentError, match="/no/such/program"):
        with start(tmp_path, system):
            pass


def test_a_scratch_folder_lives_as_long_as_the_system(tmp_path: Path, port: int) -> None:
    notes_it = "open(sys.argv[2], 'w').write(str(os.path.isdir(sys.argv[3])) + sys.argv[3])"
    system = server(tmp_path, port, notes_it, [str(tmp_path / "scratch"), "{scratch}"])
    with start(tmp_path, system):
        noted = (tmp_path / "scratch").read_text()
    assert noted.startswith("True")
    assert not os.path.exists(noted.removeprefix("True"))


def test_programs_of_this_environment_and_placeholders_are_filled_in() -> None:
    system = System(
        command=("raglane", "up", "--data", "{env:FOLDER}/x", "{scratch}"),
        setup=(("python", "-m", "x"), ("{env:FOLDER}/python",)),
        env={"OTHER": "{env:FOLDER}", "FLAG": "0"},
        url="http://127.0.0.1:1",
    )
    found = resolve("one", system, {"FOLDER": "/data", "FLAG": "1"}, "/scratch")
    assert found.command == (str(Path(sys.executable).with_name("raglane")), "up", "--data", "/data/x", "/scratch")
    assert found.setup == ((sys.executable, "-m", "x"), ("/data/python",))
    assert found.environ == {"FOLDER": "/data", "OTHER": "/data", "FLAG": "0"}


@pytest.mark.parametrize("environ", [{}, {"FOLDER": ""}])
def test_a_variable_that_is_not_set_is_named_with_its_system(environ: dict[str, str]) -> None:
    system = System(command=("{env:FOLDER}",), url="http://127.0.0.1:1")
    with pytest.raises(MissingVariable, match=r"'one' needs the environment variable FOLDER"):
        resolve("one", system, environ, "")


def test_stopping_does_not_wait_for_a_server_that_ends_at_once(tmp_path: Path, port: int) -> None:
    with start(tmp_path, server(tmp_path, port)):
        began = time.monotonic()
    assert time.monotonic() - began < systems.INTERRUPT_PATIENCE_S
