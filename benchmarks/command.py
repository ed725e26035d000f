"""The frame of a benchmark's command line: what is refused, what is recorded, and the exit code."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from benchmarks import environment, result_file
from benchmarks.experiment import ExperimentError
from benchmarks.run import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, refuse_remote


def record(
    program: str,
    arguments: Sequence[str],
    console: Console,
    measure: Callable[[], dict[str, Any]],
    *,
    url: str,
    allow_remote: bool,
    out: Path | None,
    default_name: str,
    show: Callable[[dict[str, Any]], None] = lambda result: None,
) -> int:
    """Write what `measure` returns, with how and where it was measured, and return the exit code.

    `show` prints the whole result. A server elsewhere is refused unless it is allowed; an ExperimentError is told on
    the console.
    """
    try:
        refuse_remote(url, allow_remote)
        result = {**provenance(program, arguments), "url": url, **measure()}
    except ExperimentError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    path = out or result_file.default_path(default_name)
    result_file.write(path, result)
    show(result)
    console.print(f"result: {path}", markup=False, highlight=False)
    return EXIT_OK


def provenance(program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """How and where a result is made that begins now: its command, commit, versions, hardware and time."""
    return {
        "schema_version": result_file.SCHEMA_VERSION,
        "command": shlex.join(["python", "-m", program, *arguments]),
        **environment.describe(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def end_as_interrupted() -> None:
    """Treat being told to end (SIGTERM) as Ctrl-C: what a benchmark has started must not stay behind."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
