"""Operating system processes: which are alive, whose they are, who holds a port, and how they are stopped."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]

CREATE_TIME_TOLERANCE_S = 2.0
# A Ray worker notices the death of its driver within about three seconds, and ends.
ORPHANING_TIMEOUT_S = 6.0

_NODE_ID = re.compile(r"[0-9a-f]{56}")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that stays itself: a number that the system has given to another process later does not match."""

    pid: int
    create_time: float

    @classmethod
    def of(cls, process: Any) -> ProcessId:
        return cls(process.pid, process.create_time())

    @classmethod
    def current(cls) -> ProcessId:
        return cls.of(psutil.Process())

    def find(self) -> Any | None:
        """The `psutil.Process`, or None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < CREATE_TIME_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def is_alive(self) -> bool:
        return self.find() is not None


def descendants(process: Any | None = None) -> list[Any]:
    """All processes started by `process` (default: this one) or by its descendants."""
    try:
        return list((process or psutil.Process()).children(recursive=True))
    except psutil.Error:
        return []


def identify(processes: Iterable[Any]) -> tuple[ProcessId, ...]:
    """The ids of those processes that are still alive."""
    ids = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            ids.append(ProcessId.of(process))
    return tuple(ids)


def haproxy_config_of(process: Any) -> str:
    """The configuration file that a HAProxy process was started with; empty for any other process."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    if not command or os.path.basename(command[0]) != "haproxy" or "-f" not in command[:-1]:
        return ""
    return str(command[command.index("-f") + 1])


def is_orphaned(process: Any) -> bool:
    """Whether the Ray worker that started this HAProxy is gone: nobody will ever stop it."""
    try:
        parent = process.parent()
        return parent is None or not parent.name().startswith("ray::")
    except psutil.Error:
        return True


def haproxies(config_path: str) -> list[Any]:
    """The HAProxy processes that run with a configuration file."""
    if not config_path:
        return []
    return [process for process in psutil.process_iter() if haproxy_config_of(process) == config_path]


def orphaned_haproxies(config_path: str) -> list[Any]:
    """Of the HAProxy processes with this configuration file, those that a dead server has left behind."""
    return [process for process in haproxies(config_path) if is_orphaned(process)]


def stop_haproxies(config_path: str) -> bool:
    """Stop what a dead server's HAProxy left, waiting until the last worker of that server has let go of it."""
    deadline = time.monotonic() + ORPHANING_TIMEOUT_S
    stopped = False
    while running := haproxies(config_path):
        orphans = [process for process in running if is_orphaned(process)]
        stop_processes(orphans, grace_s=0)
        stopped = stopped or bool(orphans)
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    remove_haproxy_files(config_path)
    return stopped


def remove_haproxy_files(config_path: str) -> None:
    """Remove what HAProxy kept beside its configuration, where Serve gave it a directory named after the node."""
    directory = Path(config_path).parent
    if config_path and _NODE_ID.fullmatch(directory.name):
        shutil.rmtree(directory, ignore_errors=True)


def stop_processes(processes: Iterable[Any], grace_s: float) -> None:
    """Ask the processes to end, wait `grace_s`, kill what is left."""
    remaining = list(processes)
    if grace_s > 0:
        for process in remaining:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, remaining = psutil.wait_procs(remaining, timeout=grace_s)
    for process in remaining:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(remaining, timeout=5)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. A port that only drains old connections is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def listener(port: int) -> Any | None:
    """The process that listens on a TCP port, or None where the system does not tell."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            with contextlib.suppress(psutil.Error):
                return psutil.Process(connection.pid)
    return None


def describe(process: Any | None) -> str:
    """A process as a message names it."""
    if process is None:
        return "another process"
    try:
        return f"{process.name()} (pid {process.pid})"
    except psutil.Error:
        return f"pid {process.pid}"
