"""What the commands print: progress on stderr, results on stdout, as tables for people or as JSON for scripts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

# C0, DEL and C1 but for tab and newline. A terminal obeys them: it may be told to change the screen or the clipboard.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PlainConsole(Console):
    """A console for text of others: control characters in it are printed as U+FFFD. Styles are as usual."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_CONTROL.sub("\ufffd", segment.text))


# What is printed is mostly the user's own text: `:key:` and `[bold]` in it mean nothing.
out = PlainConsole(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = PlainConsole(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)

EXCERPT_CHARS = 160
MAX_REJECTED_SHOWN = 20

Json = Mapping[str, Any]


class Steps:
    """What is going on right now: a spinner on a terminal, else one plain line for each change."""

    def __init__(self, title: str = "", console: Console = err) -> None:
        self._console = console
        self._title = title
        self._text = ""
        self._started = time.monotonic()
        self._status: Status | None = None

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._status = self._console.status(Text(self._title))
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def update(self, text: str) -> None:
        changed, self._text = text != self._text, text
        if self._status is not None:
            self._status.update(Text(f"{text} · {time.monotonic() - self._started:.0f} s"))
        elif changed and not self._console.is_terminal:
            self._console.print(Text(text))


def print_json(value: Any) -> None:
    """Print one line of JSON; control characters of all kinds are escaped in it."""
    text = json.dumps(value, ensure_ascii=False)
    out.print(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_error(message: str, remedy: str = "") -> None:
    err.print(Text.assemble(("error: ", "bold red"), message, " " if remedy else "", remedy))


def print_note(message: str) -> None:
    err.print(Text(message))


def excerpt(text: str, max_chars: int = EXCERPT_CHARS) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 1].rstrip()}…"


def print_answer(answer: Json, *, with_text: bool = True) -> None:
    """The answer, what it cites, who wrote it, and where the time went."""
    if with_text:
        out.print(Text(str(answer.get("answer", ""))))
    citations = answer.get("citations") or []
    if citations:
        out.print()
    for citation in citations:
        print_citation(citation)
    out.print()
    cached = ", given before" if answer.get("cached") else ""
    out.print(Text(f"generator: {answer.get('generator', 'unknown')}{cached}", style="dim"))
    if removed := answer.get("removed_citations"):
        out.print(Text(f"removed citations of sources that were not given: {removed}", style="yellow"))
    if degraded := answer.get("degraded"):
        out.print(Text(f"degraded: {', '.join(map(str, degraded))}", style="yellow"))
    print_timings(answer.get("timings") or [])


def print_citation(citation: Json) -> None:
    label = " — ".join(str(citation[key]) for key in ("title", "source") if citation.get(key))
    out.print(Text.assemble((f"[{citation.get('number')}] ", "bold"), label or str(citation.get("document_id", ""))))
    out.print(Text(f"    {excerpt(str(citation.get('text', '')))}", style="dim"))


def print_search(response: Json) -> None:
    results = response.get("results") or []
    if not results:
        out.print("nothing found")
    for rank, result in enumerate(results, start=1):
        label = str(result.get("title") or result.get("source") or result.get("document_id") or "")
        out.print(Text.assemble((f"{rank:>3}. ", "bold"), (f"{float(result.get('score', 0)):.4f}  ", "cyan"), label))
        out.print(Text(f"     {excerpt(str(result.get('text', '')))}", style="dim"))
    print_timings(response.get("timings") or [])


def print_timings(timings: Sequence[Json]) -> None:
    """A row for each call of a stage, in milliseconds, in the order in which they began."""
    if not timings:
        return
    table = Table("stage", box=None, header_style="bold", pad_edge=False)
    for heading in ("began ms", "total ms", "queue ms", "batch wait ms", "compute ms", "batch size"):
        table.add_column(heading, justify="right")
    keys = ("start_s", "total_s", "queue_s", "batch_wait_s", "compute_s")
    for timing in sorted(timings, key=lambda timing: float(timing.get("start_s") or 0)):
        call = f"{timing.get('stage', '')} {timing.get('branch', '')}".rstrip()
        table.add_row(call, *(_milliseconds(timing.get(key)) for key in keys), str(timing.get("batch_size", "")))
    out.print(table)


def _milliseconds(seconds: Any) -> str:
    return "" if seconds is None else f"{float(seconds) * 1000:.1f}"


def print_ingested(report: Json) -> None:
    """What an ingest did, its rejected documents last."""
    out.print(
        f"{report['documents']} documents ({report['replaced']} replaced), {report['chunks']} chunks, "
        f"{report['sentences']} sentences in {report['elapsed_s']:.1f} s: {report['documents_per_s']:.1f} documents/s"
    )
    rejected = report["rejected"]
    if not rejected:
        return
    out.print(Text(f"{len(rejected)} rejected:", style="yellow"))
    for item in rejected[:MAX_REJECTED_SHOWN]:
        out.print(Text(f"  {item['id']}: {item['reason']}"))
    if len(rejected) > MAX_REJECTED_SHOWN:
        out.print(f"  … and {len(rejected) - MAX_REJECTED_SHOWN} more")


def print_status(status: Json) -> None:
    """Where the server is, how long it has run, and what each stage says."""
    out.print(Text(f"{status['state']}  {status['url']}  {_details(status)}".rstrip()))
    for stage, readiness in (status.get("stages") or {}).items():
        out.print(Text(f"  {stage}: {readiness}", style="" if readiness == "ready" else "yellow"))
    for collection in status.get("collections") or []:
        out.print(
            Text(
                f"  collection {collection.get('name')}: {collection.get('num_documents')} documents, "
                f"{collection.get('num_chunks')} chunks"
            )
        )


def _details(status: Json) -> str:
    if status.get("pid") is None:
        return ""
    return f"(pid {status['pid']}, profile {status['profile']}, up {duration(status['uptime_s'])})"


def duration(seconds: float) -> str:
    """A duration in its two largest units."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
