"""`python -m benchmarks.overlap`: what the lane adds to the longest path through engines with known delays.

Needs a server with benchmarks/profiles/delayed.yaml and the same RAGLANE_DELAY_… environment as this program.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.command import record
from benchmarks.delays import delay_s
from benchmarks.experiment import ExperimentError

SIMPLE = "What pulls the tides of the sea?"
# The rules make one sub-query of each of the two things.
COMPARISON = "Which is heavier, iron or honey?"
NUM_BY_RULE = {SIMPLE: 0, COMPARISON: 2}
# What benchmarks.delayed_engines proposes.
NUM_BY_MODEL = 1
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Delays:
    """What each engine takes, in seconds."""

    embed: float
    vector: float
    text: float
    rerank: float
    generate: float
    rewrite: float

    @classmethod
    def of_environment(cls) -> Delays:
        """As the server's engines read them."""
        names = ("EMBED", "VECTOR", "TEXT", "RERANK", "GENERATE", "REWRITE")
        return cls(*(delay_s(name) for name in names))


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of the DAG."""

    mode: str
    question: str
    rewrite: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        if not self.rewrite:
            return f"{self.mode}, the question alone"
        return f"{self.mode}, language model{' and rules' if NUM_BY_RULE[self.question] else ''}"

    def longest_path_s(self, delays: Delays) -> float:
        """The time of an answer in which no branch waits for another."""
        searched = self._searched_s(delays)
        rewritten = delays.rewrite + searched if self.rewrite else 0.0
        return max(searched, rewritten) + delays.rerank + delays.generate

    def in_a_row_s(self, delays: Delays) -> float:
        """The time of an answer whose calls follow one another."""
        num_queries = [1 + NUM_BY_RULE[self.question], NUM_BY_MODEL] if self.rewrite else [1]
        total = delays.rerank + delays.generate + (delays.rewrite if self.rewrite else 0.0)
        for count in num_queries:
            total += 0.0 if self.mode == "text" else delays.embed + count * delays.vector
            total += 0.0 if self.mode == "vector" else count * delays.text
        return total

    def _searched_s(self, delays: Delays) -> float:
        by_vector = 0.0 if self.mode == "text" else delays.embed + delays.vector
        by_text = 0.0 if self.mode == "vector" else delays.text
        return max(by_vector, by_text)

    def body(self) -> dict[str, Any]:
        return {"question": self.question, "mode": self.mode, "rewrite": self.rewrite, "cache": False}


SHAPES = tuple(
    Shape(mode, question, rewrite)
    for mode in ("vector", "text", "hybrid")
    for question, rewrite in ((SIMPLE, False), (SIMPLE, True), (COMPARISON, True))
)


@dataclass(frozen=True, slots=True)
class Measured:
    """The latencies of one shape, against what its engines take."""

    shape: str
    longest_path_s: float
    in_a_row_s: float
    median_s: float
    latencies_s: tuple[float, ...]

    @property
    def over_longest_path(self) -> float:
        """1.0 is an answer to which the lane adds nothing."""
        return self.median_s / self.longest_path_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    return record(
        "benchmarks.overlap",
        arguments,
        console,
        lambda: _result(options, console),
        url=options.url,
        allow_remote=False,
        out=options.out,
        default_name="overlap",
    )


def _result(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure, print, and return the result file's own part."""
    delays = Delays.of_environment()
    if not all(asdict(delays).values()):
        raise ExperimentError("set RAGLANE_DELAY_EMBED, _VECTOR, _TEXT, _RERANK, _GENERATE and _REWRITE")
    measured = asyncio.run(_measure(options.url, options.repeats, delays))
    console.print(_table(measured))
    return {"delays_s": asdict(delays), "shapes": [asdict(one) for one in measured]}


async def _measure(url: str, repeats: int, delays: Delays) -> list[Measured]:
    """Ask in every shape, one request at a time, all shapes in turn; the first round only warms up."""
    latencies: dict[Shape, list[float]] = {shape: [] for shape in SHAPES}
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
        for _ in range(repeats + 1):
            for shape in SHAPES:
                latencies[shape].append(await _ask(http, shape))
    return [
        Measured(
            shape.name,
            shape.longest_path_s(delays),
            shape.in_a_row_s(delays),
            statistics.median(taken[1:]),
            tuple(taken[1:]),
        )
        for shape, taken in latencies.items()
    ]


async def _ask(http: httpx.AsyncClient, shape: Shape) -> float:
    started = time.perf_counter()
    try:
        response = await http.post("/v1/answers", json=shape.body())
    except httpx.HTTPError as error:
        raise ExperimentError(f"the question failed ({error!r}); is the server up?") from error
    taken_s = time.perf_counter() - started
    if response.status_code != 200 or response.json()["degraded"]:
        raise ExperimentError(f"{shape.name}: answered {response.status_code}: {response.text[:300]}")
    return taken_s


def _table(measured: Sequence[Measured]) -> Table:
    table = Table(title="milliseconds", title_justify="left")
    table.add_column("shape")
    for column in ("longest path", "all in a row", "measured, median", "of the longest path"):
        table.add_column(column, justify="right")
    for one in measured:
        times = (f"{1000 * value:.0f}" for value in (one.longest_path_s, one.in_a_row_s, one.median_s))
        table.add_row(one.shape, *times, f"{one.over_longest_path:.2f}")
    return table


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=11, help="requests in each shape (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/overlap-….json)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
