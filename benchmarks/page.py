"""`python -m benchmarks.page RESULT.json... --out page.html`: results as one HTML page that needs no other file."""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import plots, tables
from benchmarks.plots import Plot
from benchmarks.run import EXIT_OK, EXIT_USAGE
from benchmarks.tables import Table
from benchmarks.throughput_result import ResultFileError, ThroughputResult, read_result

TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot as the page shows it: `source` is a data URI, so that the page loads nothing."""

    title: str
    alt: str
    source: str

    @classmethod
    def of(cls, plot: Plot) -> Picture:
        return cls(plot.title, plot.alt, f"data:image/png;base64,{base64.b64encode(plot.png).decode()}")


@dataclass(frozen=True, slots=True)
class Chapter:
    """What the page shows of one result. `facts` are pairs of what and its value, `findings` whole sentences."""

    name: str
    anchor: str
    facts: tuple[tuple[str, str], ...]
    findings: tuple[str, ...]
    tables: tuple[Table, ...]
    stages: tuple[Table, ...]
    pictures: tuple[Picture, ...]

    @classmethod
    def of(cls, number: int, result: ThroughputResult, drawn: Sequence[Plot]) -> Chapter:
        members = [one for _, members in result.families() for one in members]
        heaviest = result.heaviest()
        return cls(
            name=result.name,
            anchor=f"result-{number}",
            facts=_facts(result),
            findings=(
                *tables.saturation_sentences(result),
                *([tables.bottleneck_sentence(heaviest)] if heaviest is not None else []),
            ),
            tables=(
                tables.loads_table(result),
                *([tables.saturation_table(result)] if result.saturation else []),
            ),
            stages=tuple(tables.stages_table(one) for one in members if one.stages),
            pictures=tuple(Picture.of(plot) for plot in drawn),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        shown = [(result, plots.draw(result)) for result in map(read_result, options.results)]
    except ResultFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(render(shown), encoding="utf-8")
    print(options.out)
    return EXIT_OK


def render(shown: Sequence[tuple[ThroughputResult, Sequence[Plot]]]) -> str:
    """Return the page: what was measured, its tables and its plots, a chapter for each result."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    chapters = [Chapter.of(number, result, drawn) for number, (result, drawn) in enumerate(shown, 1)]
    return environment.get_template("page.html").render(chapters=chapters)


def _facts(result: ThroughputResult) -> tuple[tuple[str, str], ...]:
    return (
        ("Command", result.shown_command),
        ("Started", result.started_at),
        ("Code", tables.commit_phrase(result)),
        ("Hardware", tables.hardware_phrase(result)),
        ("Versions", tables.versions_phrase(result)),
        ("Seed", str(result.experiment.get("seed", tables.NOTHING))),
        *([("A good request", result.promise)] if result.promise else []),
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT", help="a result file of benchmarks.run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
