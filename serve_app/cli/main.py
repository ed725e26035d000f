"""The entry point of `raglane`: puts the commands together and turns failures into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from serve_app.cli.client_commands import ask_command, ingest_command, search_command
from serve_app.cli.exits import EXIT_CODES_HELP, ExitCode, Failure
from serve_app.cli.render import out, print_error
from serve_app.cli.server_commands import down_command, status_command, up_command
from serve_app.cli.stages_command import stages_command

app = typer.Typer(
    name="raglane",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES_HELP,
)
app.command("up", epilog=EXIT_CODES_HELP)(up_command)
app.command("down", epilog=EXIT_CODES_HELP)(down_command)
app.command("status", epilog=EXIT_CODES_HELP)(status_command)
app.command("ingest", epilog=EXIT_CODES_HELP)(ingest_command)
app.command("search", epilog=EXIT_CODES_HELP)(search_command)
app.command("ask", epilog=EXIT_CODES_HELP)(ask_command)
app.command("stages", epilog=EXIT_CODES_HELP)(stages_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(version("raglane"))
        raise typer.Exit


@app.callback()
def raglane(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Answers questions over your documents: retrieval-augmented generation on Ray.

    First steps: `raglane up --detach`, `raglane ingest DIR`, `raglane ask "a question"`, `raglane down`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        app(arguments, prog_name="raglane")
    except Failure as failure:
        print_error(failure.message, failure.remedy)
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(128 + 2)
    except BrokenPipeError:
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()
