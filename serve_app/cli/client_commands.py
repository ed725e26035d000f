"""The commands that speak to a server: `ingest`, `search`, `ask`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from serve_app.cli.client import Client, Json, ServerEvent
from serve_app.cli.exits import Failure
from serve_app.cli.ingest import DEFAULT_BATCH_SIZE, IngestReport, ingest
from serve_app.cli.options import (
    DEFAULT_COLLECTION,
    CollectionOption,
    JsonOption,
    KOption,
    ModeOption,
    RewriteOption,
    UrlOption,
    server_url,
)
from serve_app.cli.render import Steps, err, out, print_answer, print_error, print_ingested, print_json, print_search


def ingest_command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Files or directories: .txt, .md, .html, .jsonl (_id,title,text)."),
    ],
    collection: CollectionOption = DEFAULT_COLLECTION,
    url: UrlOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1000, help="Documents in one request.")] = DEFAULT_BATCH_SIZE,
    as_json: JsonOption = False,
) -> None:
    """Take documents into a collection. A document that is there already is replaced, never doubled."""
    with Client(server_url(url)) as client:
        report = ingest_paths(client, paths, collection, batch_size)
    if as_json:
        print_json(report.as_json())
    else:
        print_ingested(report.as_json())
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def ingest_paths(
    client: Client, paths: list[Path], collection: str, batch_size: int = DEFAULT_BATCH_SIZE
) -> IngestReport:
    """Load and index everything under the paths, with a progress bar. Raises Failure if there is nothing."""
    from deployments.errors import RaglaneError
    from deployments.ingestion.loaders import count, load

    try:
        total = count(paths)
        if not total:
            raise Failure(f"no documents found in {_listed(paths)}.", "Documents end in .txt, .md, .html or .jsonl.")
        with _progress_bar() as bar:
            task = bar.add_task("ingesting", total=total, chunks=0, rate="")

            def show(report: IngestReport) -> None:
                done = report.documents + len(report.rejected)
                bar.update(task, completed=done, chunks=report.chunks, rate=f"{report.documents_per_s:.1f}")

            return ingest(client, collection, load(paths), batch_size, _plain_unless_terminal(show, total))
    except (RaglaneError, OSError) as error:
        raise Failure(str(error)) from error


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents · {task.fields[rate]} documents/s · {task.fields[chunks]} chunks"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def _plain_unless_terminal(show: Any, total: int) -> Any:
    """`show` on a terminal; elsewhere a line each tenth of the way."""
    if err.is_terminal:
        return show
    tenths_shown = 0

    def show_line(report: IngestReport) -> None:
        nonlocal tenths_shown
        done = report.documents + len(report.rejected)
        if (tenths := 10 * done // max(total, 1)) > tenths_shown:
            tenths_shown = tenths
            line = f"ingesting: {done}/{total} documents · {report.documents_per_s:.1f} documents/s"
            err.print(Text(f"{line} · {report.chunks} chunks"))

    return show_line


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def search_command(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    collection: CollectionOption = DEFAULT_COLLECTION,
    k: KOption = None,
    mode: ModeOption = None,
    rerank: Annotated[bool, typer.Option("--rerank/--no-rerank", help="Whether to rerank what is found.")] = True,
    rewrite: RewriteOption = True,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the passages that fit a query best."""
    options = {"k": k, "mode": mode, "rerank": rerank, "rewrite": _only_off(rewrite)}
    request = _without_none({"query": query, "collection": collection} | options)
    with Client(server_url(url)) as client, Steps("searching"):
        response = client.search(request)
    if as_json:
        print_json(response)
    else:
        print_search(response)


def ask_command(
    question: Annotated[str, typer.Argument(help="The question to answer from the documents.")],
    collection: CollectionOption = DEFAULT_COLLECTION,
    k: KOption = None,
    mode: ModeOption = None,
    rewrite: RewriteOption = True,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Whether an answer given before will do.")] = True,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer while it is being written.")] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0.1, help="The request's deadline, seconds.")
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question, with numbered citations and the time that each stage took.

    With --stream and --json together, each event is one JSON line.
    """
    switches = {"rewrite": _only_off(rewrite), "cache": _only_off(cache)}
    options = {"k": k, "mode": mode, "timeout_s": timeout_s} | switches
    request = _without_none({"question": question, "collection": collection} | options)
    with Client(server_url(url)) as client:
        if stream:
            show_stream(client.stream_answer(request), as_json=as_json)
            return
        with Steps("answering"):
            answer = client.answer(request)
    if as_json:
        print_json(answer)
    else:
        print_answer(answer)


def show_stream(events: Iterable[ServerEvent], *, as_json: bool) -> None:
    """Print an answer's events as they come; raises Failure if the stream ends in an error, or without an end."""
    answer: Json = {}
    for event in events:
        data = _event_data(event)
        if as_json:
            print_json({"event": event.name, "data": data})
        elif event.name == "token":
            out.print(Text(str(data.get("text", ""))), end="")
        if event.name == "sources":
            answer["citations"] = data.get("sources") or []
        elif event.name == "error":
            error = data.get("error", data)
            raise Failure(f"the answer broke off: {error.get('message', event.data)}")
        elif event.name == "done":
            if not as_json:
                out.print()
                print_answer(answer | data, with_text=False)
            return
    raise Failure("the answer broke off: the server closed the stream before its end.")


def _event_data(event: ServerEvent) -> Json:
    try:
        data = json.loads(event.data)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise Failure(f"the server sent an event {event.name!r} that is not a JSON object.")
    return data


def first_steps(url: str, question: str | None, documents: Path | None, collection: str) -> None:
    """What `up` does once it is ready, if asked: fill an empty collection, answer one question.

    A failure here is reported and leaves the server running.
    """
    try:
        with Client(url) as client:
            if documents is not None and not _has_documents(client, collection):
                print_ingested(ingest_paths(client, [documents], collection).as_json())
            if question is not None:
                out.print(Text(f"\n{question}\n", style="bold"))
                with Steps("answering"):
                    answer = client.answer({"question": question, "collection": collection})
                print_answer(answer)
    except Failure as failure:
        print_error(failure.message, failure.remedy)


def _has_documents(client: Client, collection: str) -> bool:
    return any(item.get("name") == collection and item.get("num_documents") for item in client.collections())


def _only_off(switch: bool) -> bool | None:
    """A switch that is on by default is left out of the request unless it is off."""
    return None if switch else False


def _without_none(request: Json) -> Json:
    return {name: value for name, value in request.items() if value is not None}
