"""Starting and stopping a server from outside: the checks before it, the detached start, the stop."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve_app.cli.environment import fixed_ports
from serve_app.cli.exits import ExitCode, Failure
from serve_app.cli.processes import (
    descendants,
    describe,
    haproxy_config_of,
    is_orphaned,
    listener,
    orphaned_haproxies,
    port_is_free,
    stop_haproxies,
    stop_processes,
)
from serve_app.cli.render import Steps
from serve_app.cli.state import ServerState, StateFile

POLL_INTERVAL_S = 0.2
LOG_TAIL_LINES = 25


def check_before_start(state_file: StateFile, host: str, port: int, environ: Mapping[str, str]) -> None:
    """Raise Failure if a server can't start here: one runs already, or something holds what it needs."""
    _check_no_other_server(state_file)
    try:
        state_file.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"can't use the data directory {state_file.data_dir}: {error.strerror}.") from error
    _check_port(host, port, "HTTP", f"Stop it, or choose another port with --port {port + 1}.")
    for variable, fixed_port, use in fixed_ports(dict(environ)):
        _check_port("0.0.0.0", fixed_port, use, f"Stop it, or set {variable} to a free port.")


def _check_no_other_server(state_file: StateFile) -> None:
    state = state_file.read()
    if state is None:
        return
    down = f"`raglane down --data {state_file.data_dir}`"
    if state.server.is_alive():
        raise Failure(
            f"a server is already {'running' if state.status == 'ready' else 'starting'} with this data directory: "
            f"{state.url} (pid {state.server.pid}).",
            f"Use it, stop it with {down}, or start another one with its own --data and --port.",
            ExitCode.SERVER_STATE,
        )
    left = {process for recorded in state.processes if (process := recorded.find()) is not None}
    left.update(orphaned_haproxies(state.haproxy_config))
    if left:
        raise Failure(
            f"a server that has died left processes running: {', '.join(sorted(map(describe, left)))}.",
            f"Stop it with {down}.",
            ExitCode.SERVER_STATE,
        )


def _check_port(host: str, port: int, use: str, remedy: str) -> None:
    try:
        if port_is_free(host, port):
            return
    except OSError as error:
        raise Failure(
            f"can't listen on {host}:{port}: {error.strerror or error}.", code=ExitCode.SERVER_STATE
        ) from error
    holder = listener(port)
    if holder is not None and haproxy_config_of(holder) and is_orphaned(holder):
        raise Failure(
            f"port {port} ({use}) is held by a HAProxy whose Ray Serve has died (pid {holder.pid}).",
            f"Stop it with `kill {holder.pid}`.",
            ExitCode.SERVER_STATE,
        )
    raise Failure(f"port {port} ({use}) is taken by {describe(holder)}.", remedy, ExitCode.SERVER_STATE)


def start_detached(command: Sequence[str], state_file: StateFile, progress: Steps) -> ServerState:
    """Run a server's command in a session of its own and return when it is ready.

    Unless the command says otherwise, the server keeps its state where `state_file` expects it.
    Raises Failure with the end of its log if it ends before.
    """
    with state_file.log_path.open("wb") as log:
        child = subprocess.Popen(
            command,
            env={**os.environ, "RAGLANE_DATA": str(state_file.data_dir)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while child.poll() is None:
            state = state_file.read()
            if state is not None and state.server.pid == child.pid and state.status == "ready":
                return state
            progress.update(_last_line(state_file.log_path) or "starting")
            time.sleep(POLL_INTERVAL_S)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    tail = "".join(f"\n  {line}" for line in _from_error(_tail(state_file.log_path, LOG_TAIL_LINES)))
    code = ExitCode.SERVER_STATE if child.returncode == ExitCode.SERVER_STATE else ExitCode.FAILED
    raise Failure(f"the server ended while starting; the end of {state_file.log_path}:{tail}", code=code)


def stop_server(state_file: StateFile, timeout_s: float, progress: Steps) -> ServerState | None:
    """Stop the server of this data directory and whatever it left; returns what was stopped, None if nothing ran."""
    state = state_file.read()
    if state is None:
        return None
    server = state.server.find()
    left = [process for recorded in state.processes if (process := recorded.find()) is not None]
    anything_ran = server is not None or bool(left)
    if server is not None:
        left = [server, *left, *descendants(server)]
        _terminate(server.pid, progress)
        deadline = time.monotonic() + timeout_s
        while state.server.is_alive() and time.monotonic() < deadline:
            progress.update(f"stopping the server (pid {server.pid})")
            time.sleep(POLL_INTERVAL_S)
        if state.server.is_alive():
            progress.update("it does not stop by itself; killing its processes")
            left += descendants(server)
    stop_processes({process for process in left if process.is_running()}, grace_s=0)
    anything_ran = stop_haproxies(state.haproxy_config) or anything_ran
    state_file.remove()
    return state if anything_ran else None


def _terminate(pid: int, progress: Steps) -> None:
    progress.update(f"stopping the server (pid {pid})")
    try:
        os.kill(pid, 15)
    except ProcessLookupError:
        return
    except PermissionError:
        raise Failure(f"the server (pid {pid}) belongs to another user.", code=ExitCode.SERVER_STATE) from None


def _tail(path: Path, lines: int) -> list[str]:
    try:
        with path.open(errors="replace") as log:
            return [line.rstrip() for line in deque(log, maxlen=lines)]
    except FileNotFoundError:
        return []


def _from_error(lines: list[str]) -> list[str]:
    """The lines from the last error that the server itself named; all of them if it died without a word."""
    named = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    return lines[named[-1] :] if named else lines


def _last_line(path: Path) -> str:
    return next((line for line in reversed(_tail(path, 5)) if line.strip()), "")
