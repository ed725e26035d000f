"""A server for the time of a benchmark: the one that runs already, or one that is started for it and always ended."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console

from benchmarks.connections import is_loopback
from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ExperimentError

COLLECTION = "docs"
DOCUMENTS = "docs"
# What the docs tell readers to type; the rest of the real command line says where.
SHOWN_COMMAND = f"raglane up --detach --ingest-if-empty {DOCUMENTS} --collection {COLLECTION}"
PROBE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 60.0


@contextmanager
def serving(url: str, console: Console, start_timeout_s: float, raglane: Sequence[str] = ()) -> Iterator[None]:
    """Hold a server at `url` that has the documents of docs/.

    One that runs there already is used and left alone. Else `raglane up` starts one over a temporary folder, and
    `raglane down` ends it whatever happens. `raglane` is the program, by default the one beside this interpreter.
    Raises ExperimentError where no server can be had.
    """
    if not is_loopback(url):
        raise ExperimentError(f"{url} is not on this machine, and only a server on this machine is loaded")
    if is_running(url):
        console.print(f"using the server at {url}", markup=False, highlight=False)
        yield
        return
    program = list(raglane) or [str(Path(sys.executable).with_name("raglane"))]
    if shutil.which(program[0]) is None:
        raise ExperimentError(f"can't start a server: there is no {program[0]}")
    data = Path(tempfile.mkdtemp(prefix="raglane-bench-"))
    try:
        _start([*program, *up_arguments(url, data)], start_timeout_s)
        yield
    finally:
        _stop([*program, "down", "--data", str(data)], data, console)


def is_running(url: str) -> bool:
    """Whether anything answers HTTP at this URL."""
    try:
        httpx.get(f"{url.rstrip('/')}/health/live", timeout=PROBE_TIMEOUT_S, trust_env=False)
    except httpx.ConnectError:
        return False
    except httpx.HTTPError as error:
        raise ExperimentError(f"what runs at {url} does not answer as a server should: {error!r}") from error
    return True


def up_arguments(url: str, data: Path) -> list[str]:
    """Return the words behind `raglane` that start a server at `url` with its data in a folder of its own."""
    port = httpx.URL(url).port or 80
    place = ["--port", str(port), "--data", str(data)]
    return ["up", "--detach", *place, "--ingest-if-empty", DOCUMENTS, "--collection", COLLECTION]


def _start(command: Sequence[str], timeout_s: float) -> None:
    try:
        subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, timeout=timeout_s, check=True)
    except subprocess.TimeoutExpired as error:
        raise ExperimentError(f"the server was not ready within {timeout_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise ExperimentError(f"`raglane up` ended with code {error.returncode}; it says above why") from error


def _stop(command: Sequence[str], data: Path, console: Console) -> None:
    """End the server and remove its folder, which stays where `raglane down` did not do its work."""
    # A second Ctrl-C must not leave the server behind.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, start_new_session=True, timeout=STOP_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        console.print(f"the server could not be stopped ({error}); its data are in {data}", style="red", markup=False)
        return
    finally:
        signal.signal(signal.SIGINT, previous)
    if done.returncode:
        console.print(f"`raglane down` failed; stop the server with --data {data}", style="red", markup=False)
        return
    shutil.rmtree(data, ignore_errors=True)
