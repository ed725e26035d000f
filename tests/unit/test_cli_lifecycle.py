"""State file, checks before a start, and the stop: with real processes and ports, without Ray."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from serve_app.cli.exits import ExitCode, Failure
from serve_app.cli.lifecycle import check_before_start, start_detached, stop_server
from serve_app.cli.processes import ProcessId, haproxies, listener, port_is_free, remove_haproxy_files
from serve_app.cli.render import Steps
from serve_app.cli.state import ServerState, StateFile
from tests.ports import free_port

SLEEP = "import time; time.sleep(60)"
HAPROXY_OFF: dict[str, str] = {}


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


@pytest.fixture
def state_file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path)


def python(children: list[subprocess.Popen[str]], code: str, *arguments: str, name: str = "python") -> ProcessId:
    """Start Python under another process name, and wait until it prints a line."""
    command = [name, "-c", f"print('up', flush=True)\n{code}", *arguments]
    child = subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE, text=True)
    children.append(child)
    assert child.stdout is not None
    child.stdout.readline()
    return ProcessId.of(psutil.Process(child.pid))


def a_state(server: ProcessId, **changes: object) -> ServerState:
    state = ServerState(server, "ready", "http://127.0.0.1:8000", 8000, "local", "0.1.0", 1.0)
    return dataclasses.replace(state, **changes)  # type: ignore[arg-type]


def dead_process() -> ProcessId:
    return ProcessId(ProcessId.current().pid, create_time=1.0)


def has_ended(process: ProcessId, children: list[subprocess.Popen[str]]) -> bool:
    for child in children:
        child.poll()
    return not process.is_alive()


def test_a_state_is_read_back_as_it_was_written(state_file: StateFile) -> None:
    state = a_state(ProcessId.current(), haproxy=ProcessId(7, 2.0), haproxy_config="/x", processes=(ProcessId(8, 3.0),))
    state_file.write(state)
    assert state_file.read() == state
    assert [path.name for path in state_file.data_dir.iterdir()] == ["server.json"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"server": 1}', "not json"])
def test_a_state_file_that_makes_no_sense_counts_as_none(state_file: StateFile, content: str) -> None:
    state_file.path.write_text(content)
    assert state_file.read() is None


def test_a_pid_that_another_process_has_now_is_not_the_server(state_file: StateFile) -> None:
    state_file.write(a_state(dead_process()))
    assert state_file.read_running() is None
    state_file.write(a_state(ProcessId.current()))
    assert state_file.read_running() is not None


def test_a_second_server_in_the_same_data_directory_is_refused_with_the_remedy(state_file: StateFile) -> None:
    state_file.write(a_state(ProcessId.current()))
    with pytest.raises(Failure, match=rf"already running .*\(pid {os.getpid()}\)") as failure:
        check_before_start(state_file, "127.0.0.1", free_port(), HAPROXY_OFF)
    assert failure.value.code is ExitCode.SERVER_STATE
    assert f"raglane down --data {state_file.data_dir}" in failure.value.remedy


def test_a_stale_state_file_does_not_stop_a_new_server(state_file: StateFile) -> None:
    state_file.write(a_state(dead_process(), haproxy_config="/nowhere/haproxy.cfg"))
    check_before_start(state_file, "127.0.0.1", free_port(), HAPROXY_OFF)


def test_a_busy_port_is_named_with_its_holder(state_file: StateFile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(Failure, match=rf"port {port} \(HTTP\) is taken by .*pid {os.getpid()}") as failure:
            check_before_start(state_file, "127.0.0.1", port, HAPROXY_OFF)
    assert "--port" in failure.value.remedy


def test_a_port_held_on_every_interface_is_busy_on_this_one() -> None:
    with socket.create_server(("0.0.0.0", 0)) as held:
        port = held.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        holder = listener(port)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert port_is_free("127.0.0.1", port)


def test_a_busy_fixed_port_of_haproxy_is_named_with_the_variable_that_moves_it(state_file: StateFile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        environ = {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(held.getsockname()[1]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        }
        with pytest.raises(Failure, match="HAProxy's metrics") as failure:
            check_before_start(state_file, "127.0.0.1", free_port(), environ)
    assert "RAY_SERVE_HAPROXY_METRICS_PORT" in failure.value.remedy


def test_an_address_of_another_machine_is_refused(state_file: StateFile) -> None:
    with pytest.raises(Failure, match=r"can't listen on 192\.0\.2\.254"):
        check_before_start(state_file, "192.0.2.254", free_port(), HAPROXY_OFF)


def test_a_left_over_haproxy_is_named_then_stopped_by_down(
    state_file: StateFile, children: list[subprocess.Popen[str]]
) -> None:
    config = str(state_file.data_dir / "haproxy.cfg")
    left = python(children, SLEEP, "-db", "-f", config, name="haproxy")
    other = python(children, SLEEP, "-db", "-f", "/another/haproxy.cfg", name="haproxy")
    state_file.write(a_state(dead_process(), haproxy=left, haproxy_config=config))

    with pytest.raises(Failure, match=rf"left processes running: .*pid {left.pid}"):
        check_before_start(state_file, "127.0.0.1", free_port(), HAPROXY_OFF)
    assert [process.pid for process in haproxies(config)] == [left.pid]

    assert stop_server(state_file, 1.0, Steps()) is not None
    assert has_ended(left, children)
    assert other.is_alive()
    check_before_start(state_file, "127.0.0.1", free_port(), HAPROXY_OFF)


def test_an_orphaned_haproxy_on_the_port_is_named_with_the_kill_that_stops_it(
    state_file: StateFile, children: list[subprocess.Popen[str]]
) -> None:
    port = free_port()
    serve = f"import socket, time; held = socket.create_server(('127.0.0.1', {port})); print('on', flush=True); {SLEEP}"
    left = python(children, serve, "-f", "/x/haproxy.cfg", name="haproxy")
    assert children[0].stdout is not None
    children[0].stdout.readline()
    with pytest.raises(Failure, match="HAProxy whose Ray Serve has died") as failure:
        check_before_start(state_file, "127.0.0.1", port, HAPROXY_OFF)
    assert f"kill {left.pid}" in failure.value.remedy


def test_down_stops_a_server_that_answers_the_request_to_stop(
    state_file: StateFile, children: list[subprocess.Popen[str]]
) -> None:
    server = python(children, SLEEP)
    state_file.write(a_state(server))
    stopped = stop_server(state_file, 10.0, Steps())
    assert stopped is not None
    assert stopped.url == "http://127.0.0.1:8000"
    assert has_ended(server, children)
    assert state_file.read() is None


def test_down_kills_a_server_that_does_not_stop_with_all_its_processes_and_no_other(
    state_file: StateFile, children: list[subprocess.Popen[str]]
) -> None:
    stubborn = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', '{SLEEP}'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    server = python(children, stubborn)
    assert children[0].stdout is not None
    grandchild = ProcessId.of(psutil.Process(int(children[0].stdout.readline())))
    bystander = python(children, SLEEP)
    state_file.write(a_state(server))

    stop_server(state_file, 0.3, Steps())
    assert has_ended(server, children)
    assert not grandchild.is_alive()
    assert bystander.is_alive()


def test_down_stops_what_a_dead_server_had_recorded(
    state_file: StateFile, children: list[subprocess.Popen[str]]
) -> None:
    agent = python(children, SLEEP)
    state_file.write(a_state(dead_process(), processes=(agent, ProcessId(agent.pid, 1.0))))
    assert stop_server(state_file, 1.0, Steps()) is not None
    assert has_ended(agent, children)


def test_down_without_a_server_stops_nothing(state_file: StateFile) -> None:
    assert stop_server(state_file, 1.0, Steps()) is None
    state_file.write(a_state(dead_process()))
    assert stop_server(state_file, 1.0, Steps()) is None
    assert state_file.read() is None


def test_a_detached_server_that_ends_while_starting_is_reported_with_its_own_error(state_file: StateFile) -> None:
    missing = state_file.data_dir / "missing.yaml"
    command = [sys.executable, "-m", "serve_app.cli.main", "up", "--config", str(missing)]
    with pytest.raises(Failure, match="ended while starting") as failure:
        start_detached(command, state_file, Steps())
    assert f"error: there is no config file {missing}" in failure.value.message
    assert failure.value.code is ExitCode.FAILED
    assert "missing.yaml" in state_file.log_path.read_text()


def test_a_detached_start_returns_when_the_server_says_it_is_ready(state_file: StateFile) -> None:
    server = (
        "import time\n"
        "from pathlib import Path\n"
        "from serve_app.cli.processes import ProcessId\n"
        "from serve_app.cli.state import ServerState, StateFile\n"
        f"state_file = StateFile(Path({str(state_file.data_dir)!r}))\n"
        "for status in ('starting', 'ready'):\n"
        "    state_file.write(ServerState(ProcessId.current(), status, 'http://there', 1, 'local', '0', 1.0))\n"
        "    time.sleep(0.5)\n"
        "time.sleep(60)\n"
    )
    state = start_detached([sys.executable, "-c", server], state_file, Steps())
    try:
        assert (state.status, state.url) == ("ready", "http://there")
        assert os.getsid(state.server.pid) == state.server.pid
    finally:
        os.kill(state.server.pid, 9)
        os.waitpid(state.server.pid, 0)


def test_only_a_directory_that_serve_named_after_its_node_is_removed(tmp_path: Path) -> None:
    mine, shared = tmp_path / ("0123456789abcdef" * 4)[:56], tmp_path / "haproxy-serve"
    for directory in (mine, shared):
        directory.mkdir()
        remove_haproxy_files(str(directory / "haproxy.cfg"))
    assert not mine.exists()
    assert shared.exists()


def test_a_process_that_has_ended_but_is_not_reaped_is_not_alive(children: list[subprocess.Popen[str]]) -> None:
    process = python(children, "")
    deadline = time.monotonic() + 60
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_alive()
