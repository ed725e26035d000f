"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.environment import default_data_dir
from serve_app.cli.profile import DEFAULT_HOST, DEFAULT_PORT
from serve_app.cli.state import StateFile

DEFAULT_COLLECTION = "docs"

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The server's data directory: its store, state and log. (default: $RAGLANE_DATA, else ./.raglane if a "
        "server such as that of `make run` has its state there, else ~/.raglane)",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The server's address. (default: the server that runs on this machine, else $RAGLANE_URL, "
        f"else http://{DEFAULT_HOST}:{DEFAULT_PORT})",
    ),
]
CollectionOption = Annotated[
    str, typer.Option("--collection", "-c", metavar="NAME", help="The collection of documents to work on.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, and nothing else, on stdout.")]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", metavar="MODE", help="vector, text or hybrid. (default: the server's)"),
]
RewriteOption = Annotated[
    bool, typer.Option("--rewrite/--no-rewrite", help="Whether to search sub-queries beside the question itself.")
]
KOption = Annotated[int | None, typer.Option("-k", min=1, help="How many results. (default: the server's)")]


def data_dir(data: Path | None) -> Path:
    """The data directory to use, absolute."""
    return (data or Path(default_data_dir())).expanduser().absolute()


def server_url(url: str | None) -> str:
    """The server to speak to: the option, the server running on this machine, the environment, the default."""
    if url:
        return url
    state = StateFile(data_dir(None)).read_running()
    if state is not None:
        return state.url
    return os.environ.get("RAGLANE_URL") or f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
