"""The servers of a comparison: started one at a time, and stopped so that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped, unused-ignore]

from benchmarks.comparison import Command, System
from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ExperimentError

POLL_INTERVAL_S = 0.2
PROBE_TIMEOUT_S = 5.0
# Ray finishes what is in flight, stops its replicas and then itself.
INTERRUPT_PATIENCE_S = 45.0
TERMINATE_PATIENCE_S = 10.0
LEFTOVER_PATIENCE_S = 3.0
PORTS_PATIENCE_S = 30.0
LOG_TAIL_LINES = 15

_PLACEHOLDER = re.compile(r"\{(?:env:(?P<variable>[A-Za-z_][A-Za-z0-9_]*)|(?P<scratch>scratch))\}")


class MissingVariable(ExperimentError):
    """A system names an environment variable that is not set."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a system is started: its command, the commands after it, and the whole environment of all of them."""

    command: Command
    setup: tuple[Command, ...]
    environ: Mapping[str, str]


def resolve(name: str, system: System, environ: Mapping[str, str], scratch: str) -> Start:
    """Fill in the placeholders and find the programs. Raises MissingVariable for a variable that is not set."""

    def fill(text: str) -> str:
        def value(match: re.Match[str]) -> str:
            variable = match["variable"]
            if variable is None:
                return scratch
            if not environ.get(variable):
                raise MissingVariable(f"system {name!r} needs the environment variable {variable}; set it")
            return environ[variable]

        return _PLACEHOLDER.sub(value, text)

    def command(parts: Command) -> Command:
        return (_program(fill(parts[0])), *map(fill, parts[1:]))

    env = {variable: fill(value) for variable, value in system.env.items()}
    return Start(command(system.command), tuple(map(command, system.setup)), {**environ, **env})


def _program(program: str) -> str:
    if program == "python":
        return sys.executable
    return str(Path(sys.executable).with_name(program)) if program == "raglane" else program


@contextmanager
def running(
    name: str, system: System, log: Path, start_timeout_s: float, note: Callable[[str], None]
) -> Iterator[None]:
    """The system, ready and set up, inside the block; stopped when the block is left in any way.

    What it and its setup commands print goes to `log`; `note` is told what had to be killed. Raises ExperimentError
    where it can't be started, does not become ready in time, or leaves a port taken.
    """
    ports = (_port_of(system.url), *system.ports)
    check_ports_are_free(name, ports)
    scratch = tempfile.mkdtemp(prefix="benchmark-")
    try:
        start = resolve(name, system, os.environ, scratch)
        process = _launch(name, start, log)
        try:
            _wait_until_ready(name, system, process, log, start_timeout_s)
            _set_up(name, start, log)
            yield
        finally:
            if killed := stop(process):
                note(f"system {name!r} left processes that had to be killed: {', '.join(sorted(killed))}")
        _wait_for_ports(name, ports)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_ports_are_free(name: str, ports: Sequence[int]) -> None:
    """Raise ExperimentError naming the first port that is taken."""
    for port in ports:
        if not _is_free(port):
            raise ExperimentError(f"port {port}, which system {name!r} needs, is taken; stop what listens there")


def stop(process: subprocess.Popen[bytes]) -> list[str]:
    """Stop a server and all that it started: SIGINT, then SIGTERM, then SIGKILL. Returns the names of what was killed.

    Whatever the server does not stop by itself is found by its descent or by the session that it began.
    """
    family = _family(process.pid)
    try:
        for number, patience_s in ((signal.SIGINT, INTERRUPT_PATIENCE_S), (signal.SIGTERM, TERMINATE_PATIENCE_S)):
            if process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
    finally:
        family |= _family(process.pid)
        _, left = psutil.wait_procs(family, timeout=LEFTOVER_PATIENCE_S)
        killed = _kill(left)
        process.wait()
    return killed


def _family(pid: int) -> set[Any]:
    """A process, all that descend from it, and all of the session that it leads."""
    found: set[Any] = set()
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        found |= {leader, *leader.children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == pid:
                found.add(process)
    return found


def _kill(processes: Sequence[Any]) -> list[str]:
    killed: list[str] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            killed.append(process.name())
            process.kill()
    psutil.wait_procs(processes, timeout=LEFTOVER_PATIENCE_S)
    return killed


def _launch(name: str, start: Start, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        try:
            return subprocess.Popen(
                start.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=start.environ,
                # A group of its own: it must not get the benchmark's Ctrl-C, and is stopped as a whole.
                start_new_session=True,
            )
        except OSError as error:
            raise ExperimentError(f"can't start system {name!r}, {start.command[0]}: {error.strerror}") from error


def _wait_until_ready(name: str, system: System, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with httpx.Client(base_url=system.url, timeout=PROBE_TIMEOUT_S, trust_env=False) as http:
        while not _is_ready(http, system.ready):
            if process.poll() is not None:
                code = process.returncode
                raise ExperimentError(f"system {name!r} ended with code {code} while starting{_told(log)}")
            if time.monotonic() > deadline:
                raise ExperimentError(f"system {name!r} was not ready within {timeout_s:g} s{_told(log)}")
            time.sleep(POLL_INTERVAL_S)


def _is_ready(http: httpx.Client, path: str) -> bool:
    try:
        return http.get(path).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _set_up(name: str, start: Start, log: Path) -> None:
    for command in start.setup:
        with log.open("ab") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY,
                env=start.environ, check=False,
            )  # fmt: skip
        if done.returncode:
            raise ExperimentError(f"setup of {name!r}, {command[0]}, ended with code {done.returncode}{_told(log)}")


def _told(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as lines:
        tail = "".join(f"\n  {line.rstrip()}" for line in deque(lines, maxlen=LOG_TAIL_LINES))
    return f"; its log is {log}" + (f" and ends:{tail}" if tail else ", and empty")


def _wait_for_ports(name: str, ports: Sequence[int]) -> None:
    deadline = time.monotonic() + PORTS_PATIENCE_S
    while taken := [port for port in ports if not _is_free(port)]:
        if time.monotonic() > deadline:
            raise ExperimentError(f"system {name!r} has ended, but its ports are still taken: {taken}")
        time.sleep(POLL_INTERVAL_S)


def _port_of(url: str) -> int:
    return httpx.URL(url).port or 80


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # All addresses: HAProxy's own ports are taken on each of them.
            probe.bind(("", port))
        except OSError:
            return False
    return True
