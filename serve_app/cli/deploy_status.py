"""Reads Serve's status of an application: how far it is, and why it failed, in words a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

TRACEBACK_TAIL_LINES = 8

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION_LINE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Failure|Exit|Interrupt|Warning)?: \S")
_SCHEDULING = "to be scheduled"


def is_running(applications: Iterable[Any]) -> bool:
    applications = list(applications)
    return bool(applications) and all(application.status == "RUNNING" for application in applications)


def progress_line(applications: Iterable[Any]) -> str:
    """The deployments that are not ready, each with what its replicas do; how many are ready."""
    waiting, num_ready = [], 0
    for application in applications:
        for name, deployment in application.deployments.items():
            if deployment.status == "HEALTHY":
                num_ready += 1
                continue
            replicas = {str(getattr(state, "value", state)): n for state, n in deployment.replica_states.items() if n}
            states = ", ".join(
                f"{count} {state.lower().replace('_', ' ')}" for state, count in sorted(replicas.items())
            )
            waiting.append(f"{name} ({states or 'waiting'})")
    if not waiting:
        return "building the application" if not num_ready else f"{num_ready} deployments ready"
    return f"{num_ready}/{num_ready + len(waiting)} deployments ready; starting {', '.join(waiting)}"


def failure_message(applications: Iterable[Any]) -> str | None:
    """Why the applications will not come up by themselves: the cause first, then the end of its traceback."""
    for application in applications:
        if application.status not in ("DEPLOY_FAILED", "UNHEALTHY"):
            continue
        for name, deployment in application.deployments.items():
            if deployment.message and deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                return f"{name} failed to start: {cause_and_tail(deployment.message)}"
        return f"the application failed to deploy: {cause_and_tail(application.message)}"
    return None


def unschedulable_message(applications: Iterable[Any]) -> str | None:
    """What Serve says about a replica that finds no room on the machine."""
    for application in applications:
        for deployment in application.deployments.values():
            if _SCHEDULING in deployment.message:
                return _ANSI.sub("", deployment.message).replace("Use `ray status` for more details.", "").strip()
    return None


def cause_and_tail(message: str) -> str:
    """The line that names the exception, then the last lines of the traceback that ends in it."""
    lines = [line.rstrip() for line in _ANSI.sub("", message).splitlines() if line.strip()]
    if not lines:
        return "Serve gives no reason"
    causes = [index for index, line in enumerate(lines) if _EXCEPTION_LINE.match(line)]
    if len(lines) == 1 or not causes:
        return lines[0] if len(lines) == 1 else "\n".join(lines[-TRACEBACK_TAIL_LINES:])
    last = causes[-1]
    frames = [line for line in lines[:last] if line.strip(" ^~")][-TRACEBACK_TAIL_LINES:]
    return "\n".join([*lines[last:], *(f"  {line}" for line in frames)])
