"""The commands that own a server on this machine: `up`, `down`, `status`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.client import Client, Json
from serve_app.cli.client_commands import first_steps
from serve_app.cli.environment import apply_settings
from serve_app.cli.exits import ExitCode, Failure
from serve_app.cli.lifecycle import check_before_start, start_detached, stop_server
from serve_app.cli.options import (
    DEFAULT_COLLECTION,
    CollectionOption,
    DataOption,
    JsonOption,
    UrlOption,
    data_dir,
    server_url,
)
from serve_app.cli.profile import check_arguments, find_profile, read_config, with_options, with_store
from serve_app.cli.render import Steps, out, print_json, print_note, print_status
from serve_app.cli.server import ServerPlan, serving
from serve_app.cli.state import StateFile

DEFAULT_PROFILE = "local"
STOP_TIMEOUT_S = 20.0


def up_command(
    profile: Annotated[
        str | None,
        typer.Option(
            help="local: no GPU, no downloads. cpu-vllm: vLLM on CPU. gpu: the models on GPUs. "
            f"(default: {DEFAULT_PROFILE})"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own Serve config file instead of a profile.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="HTTP port. (default: the file's, or 8000)")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all. (default: the file's, or 127.0.0.1)")
    ] = None,
    data: DataOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when the server is ready; it runs on.")
    ] = False,
    ask: Annotated[
        str | None, typer.Option(metavar="QUESTION", help="Ask this as soon as the server is ready.")
    ] = None,
    ingest_if_empty: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Once ready, ingest DIR if the collection has no documents.")
    ] = None,
    collection: CollectionOption = DEFAULT_COLLECTION,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the replicas' own output.")] = False,
) -> None:
    """Start a server on this machine and serve until Ctrl-C, which stops everything that it started."""
    apply_settings(os.environ)
    plan = _plan(config, profile, (host, port), data, verbose)
    check_before_start(plan.state_file, plan.host, plan.port, os.environ)
    if detach:
        with Steps("starting") as progress:
            start_detached(_foreground_command(plan, config, data), plan.state_file, progress)
        first_steps(plan.url, ask, ingest_if_empty, collection)
        out.print(f"raglane is ready at {plan.url}; `raglane down{_data_argument(data)}` stops it")
        return
    check_arguments(plan.document)
    is_ready = False
    try:
        with serving(plan) as server:
            is_ready = True
            first_steps(plan.url, ask, ingest_if_empty, collection)
            out.print(f"\nraglane is ready at {plan.url} (Ctrl-C stops it)")
            server.wait()
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.OK if is_ready else ExitCode.FAILED) from None


def _plan(
    config: Path | None, profile: str | None, address: tuple[str | None, int | None], data: Path | None, verbose: bool
) -> ServerPlan:
    if config is not None and profile is not None:
        raise Failure(f"--profile {profile} and --config {config} exclude each other.", "Give one.", ExitCode.USAGE)
    profile = profile or DEFAULT_PROFILE
    path = config or find_profile(profile)
    document = with_options(read_config(path), *address)
    directory = data_dir(data)
    # A file of the user's own keeps the store that it names, unless the command line says otherwise.
    if config is None or data is not None:
        document = with_store(document, directory)
    return ServerPlan(document, profile if config is None else str(path), StateFile(directory), verbose)


def _foreground_command(plan: ServerPlan, config: Path | None, data: Path | None) -> list[str]:
    """The `raglane up` that serves this plan in the foreground, started with the plan's data directory."""
    source = ["--config", str(config)] if config is not None else ["--profile", plan.profile]
    address = ["--host", plan.host, "--port", str(plan.port)]
    # Not where the user did not: it would move the store of a file of the user's own.
    directory = ["--data", str(plan.state_file.data_dir)] if data is not None else []
    verbose = ["--verbose"] if plan.verbose else []
    return [sys.executable, "-m", "serve_app.cli.main", "up", *source, *address, *directory, *verbose]


def _data_argument(data: Path | None) -> str:
    return f" --data {data}" if data is not None else ""


def down_command(
    data: DataOption = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds until a server that does not stop is killed.")
    ] = STOP_TIMEOUT_S,
) -> None:
    """Stop the server on this machine, and whatever a dead one has left behind."""
    with Steps("stopping") as progress:
        stopped = stop_server(StateFile(data_dir(data)), timeout_s, progress)
    out.print(f"stopped the server at {stopped.url}" if stopped else "nothing is running")


def status_command(data: DataOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Say whether a server runs, where, for how long, what is ready, and what it holds.

    With --data alone it is the server of that directory, and no other.
    """
    status, code = _status(data, url)
    if as_json:
        print_json(status)
    elif code is ExitCode.SERVER_STATE:
        why = f"{status['url']} does not answer" if status["url"] else f"none has its state in {data_dir(data)}"
        print_note(f"no server is running ({why}). Start one with `raglane up{_data_argument(data)}`.")
    else:
        print_status(status)
    if code:
        raise typer.Exit(code)


def _status(data: Path | None, url: str | None) -> tuple[Json, ExitCode]:
    status: dict[str, Any] = {"state": "not running", "url": None, "stages": {}, "collections": []}
    state = None if url else StateFile(data_dir(data)).read_running()
    if state is None and data is not None and not url:
        return status, ExitCode.SERVER_STATE
    with Client(state.url if state else server_url(url)) as client:
        status["url"] = client.url
        is_ready, status["stages"] = client.readiness()
        if state is not None:
            status |= {"pid": state.server.pid, "profile": state.profile, "version": state.version}
            status["uptime_s"] = round(time.time() - state.started_at, 1)
        if is_ready:
            status["state"] = "ready"
            try:
                status["collections"] = client.collections()
            except Failure as failure:
                status["collections_error"] = failure.message
            return status, ExitCode.OK
    if state is None and not status["stages"]:
        return status, ExitCode.SERVER_STATE
    status["state"] = "starting" if state is not None and state.status == "starting" else "not ready"
    return status, ExitCode.NOT_READY
