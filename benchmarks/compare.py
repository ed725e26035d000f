"""`python -m benchmarks.compare COMPARISON`: start several systems in turn, round after round, and compare them.

Ratios are of the file's first system to each of the others: requests/s above 1 and latencies below 1 are in its favour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks import comparison_report as report
from benchmarks.closed_load import ClosedLoop, measure
from benchmarks.command import end_as_interrupted, record
from benchmarks.comparison import Comparison, read_comparison
from benchmarks.experiment import ClosedLoad, ExperimentError
from benchmarks.ratios import MEASURES, Ratio, agreement, measures_of, median_of, ratios
from benchmarks.run import EXIT_USAGE, refuse_remote
from benchmarks.systems import MissingVariable, resolve, running

Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        comparison = read_comparison(options.comparison, _overrides(options))
    except ExperimentError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return EXIT_USAGE
    return record(
        "benchmarks.compare",
        arguments,
        console,
        lambda: ComparisonRun(comparison, options.only, console).run(),
        url=next(iter(comparison.systems.values())).url,
        allow_remote=False,
        out=options.out,
        default_name=comparison.name,
        show=lambda result: report.print_result(console, result),
    )


class ComparisonRun:
    """The systems of one comparison, one server at a time."""

    def __init__(self, comparison: Comparison, only: Sequence[str], console: Console) -> None:
        self._comparison = comparison
        self._only = only
        self._console = console
        queries = comparison.query_records()
        self._bodies = {
            name: [comparison.target_of(name).encode(query["text"], query) for query in queries]
            for name in comparison.systems
        }

    def run(self) -> dict[str, Any]:
        """Go through all rounds and return the result file's own part.

        Raises ExperimentError where a system can't be measured or leaves out a stage, or where its answers are not
        those of the first.
        """
        comparison = self._comparison
        names, skipped = self._chosen()
        logs = Path(tempfile.mkdtemp(prefix=f"{comparison.name}-logs-"))
        self._note(f"what the servers print goes to {logs}")
        answers: dict[str, list[list[str]]] = {}
        runs: list[Run] = []
        for round_index in range(comparison.rounds):
            for name in comparison.order(names, round_index):
                self._note(f"round {round_index + 1} of {comparison.rounds}: starting {name}")
                log = logs / f"{name}-{round_index}.log"
                with running(name, comparison.systems[name], log, comparison.start_timeout_s, self._note):
                    if round_index == 0:
                        answers[name] = self._answers(name)
                    runs += asyncio.run(self._run_loads(name, round_index))
            if round_index == 0:
                agreements = self._verified(names, answers)
        return {
            "comparison": comparison.model_dump(mode="json"),
            "systems": names,
            "skipped": skipped,
            "agreement": agreements,
            "loads": compare(comparison.loads, names, runs),
            "runs": runs,
        }

    def _chosen(self) -> tuple[list[str], dict[str, str]]:
        """The systems to be measured, in the file's order, and why the optional ones among the others are not."""
        systems = self._comparison.systems
        for name in self._only:
            if name not in systems:
                raise ExperimentError(f"there is no system {name!r}; the file has {', '.join(systems)}")
        names: list[str] = []
        skipped: dict[str, str] = {}
        for name, system in systems.items():
            if self._only and name not in self._only:
                continue
            refuse_remote(system.url, allow_remote=False)
            try:
                resolve(name, system, os.environ, scratch="")
            except MissingVariable as error:
                if not system.optional:
                    raise
                skipped[name] = str(error)
                self._note(f"leaving out {name}: {error}")
            else:
                names.append(name)
        if not names:
            raise ExperimentError("no system is left to be measured")
        return names, skipped

    def _answers(self, name: str) -> list[list[str]]:
        """What the system answers to the first queries, one at a time, as the lists of values to be compared."""
        verify, system = self._comparison.verify, self._comparison.systems[name]
        if verify is None or not system.verify:
            return []
        target = self._comparison.target_of(name)
        answers: list[list[str]] = []
        headers = {"Content-Type": "application/json"}
        timeout_s = self._comparison.timeout_s
        with httpx.Client(base_url=system.url, headers=headers, timeout=timeout_s, trust_env=False) as http:
            for body in self._bodies[name][: verify.num_queries]:
                try:
                    response = http.request(target.method, target.path, content=body)
                    response.raise_for_status()
                    answers.append([str(value) for value in values_at(response.json(), verify.at)])
                except (httpx.HTTPError, ValueError) as error:
                    raise ExperimentError(f"system {name!r} does not answer as it should: {error}") from error
        return answers

    def _verified(self, names: Sequence[str], answers: dict[str, list[list[str]]]) -> dict[str, Any]:
        """How far the answers agree with the first system's. Raises ExperimentError where they do not."""
        verify = self._comparison.verify
        agreements: dict[str, Any] = {}
        reference = answers[names[0]]
        if verify is None or not reference:
            return agreements
        if not any(reference):
            raise ExperimentError(f"the answers of system {names[0]!r} hold nothing at {verify.at!r} to be verified")
        for name in names[1:]:
            if not answers[name]:
                continue
            found = agreement(reference, answers[name])
            agreements[name] = asdict(found)
            self._note(f"{name} answers as {names[0]}: {found.overlap:.1%} the same, {found.same_order:.0%} in order")
            if found.overlap < verify.min_overlap or found.same_order < verify.min_same_order:
                raise ExperimentError(
                    f"the answers of {name!r} are not those of {names[0]!r} at {verify.at!r}: {found.overlap:.1%} of "
                    f"the values are the same and {found.same_order:.1%} of the answers equal"
                )
        return agreements

    async def _run_loads(self, name: str, round_index: int) -> list[Run]:
        return [
            await self._run_load(name, load, (self._comparison.seed, index, round_index))
            for index, load in enumerate(self._comparison.loads)
        ]

    async def _run_load(self, name: str, load: ClosedLoad, seed: tuple[int, int, int]) -> Run:
        comparison = self._comparison
        loop = ClosedLoop(
            comparison.systems[name].url,
            comparison.target_of(name),
            self._bodies[name],
            warmup_s=comparison.warmup_s,
            duration_s=comparison.duration_s,
            timeout_s=comparison.timeout_s,
            max_requests=comparison.max_requests,
        )
        measured = await measure(loop, load, seed)
        summary = measured.summary
        report.print_run(self._console, name, load.clients, summary, measured.client_cpu_share)
        if not summary.num_succeeded:
            raise ExperimentError(f"system {name!r} answered none of the requests of {load.clients} clients")
        if summary.degraded:
            raise ExperimentError(
                f"system {name!r}, {load.clients} clients: answers did without {summary.degraded}, which would pass "
                "for speed; raise its timeouts"
            )
        return {
            "system": name,
            "load": load.model_dump(mode="json"),
            "round": seed[2],
            "window": asdict(measured.window),
            "client_cpu_share": measured.client_cpu_share,
            "measures": measures_of(summary),
            "summary": asdict(summary),
            "stages": [asdict(stage) for stage in measured.stages],
        }

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)


def compare(loads: Sequence[ClosedLoad], names: Sequence[str], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each load each system's measures, the median and every round's, and the first system's ratios to the others.

    `runs` holds one run of every load for each system and round, the rounds of a system in their order.
    """
    return [_compared(load.model_dump(mode="json"), names, runs) for load in loads]


def _compared(load: dict[str, Any], names: Sequence[str], runs: Sequence[Run]) -> dict[str, Any]:
    by_system = {name: [run for run in runs if run["system"] == name and run["load"] == load] for name in names}
    values = {
        name: {measure: [run["measures"][measure] for run in own] for measure in MEASURES}
        for name, own in by_system.items()
    }
    return {
        "load": load,
        "systems": {
            name: {measure: {"median": median_of(rounds), "rounds": rounds} for measure, rounds in measures.items()}
            for name, measures in values.items()
        },
        "num_failed": {name: sum(run["summary"]["num_failed"] for run in own) for name, own in by_system.items()},
        "first_to": {
            name: {measure: _as_json(one) for measure, one in by_measure.items()}
            for name, by_measure in ratios(values).items()
        },
    }


def _as_json(one: Ratio | None) -> dict[str, float] | None:
    return None if one is None else asdict(one)


def values_at(answer: Any, path: str) -> list[Any]:
    """The values at a path of keys and `*`, which stands for every item of a list: `results.*.id`.

    Raises ValueError where the answer is of another shape.
    """
    found = [answer]
    for step in path.split("."):
        if step == "*":
            if not all(isinstance(value, list) for value in found):
                raise ValueError(f"the answer has no list at {path!r}: {json.dumps(answer)[:300]}")
            found = [item for value in found for item in value]
        else:
            if not all(isinstance(value, dict) and step in value for value in found):
                raise ValueError(f"the answer has nothing at {path!r}: {json.dumps(answer)[:300]}")
            found = [value[step] for value in found]
    return found


def _overrides(options: argparse.Namespace) -> dict[str, object]:
    """What the command line puts in place of the comparison file's own keys."""
    given = {"queries": options.queries, "rounds": options.rounds, "duration_s": options.duration_s}
    return {key: value for key, value in given.items() if value is not None}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("comparison", type=Path, help="a file benchmarks/experiments/compare_*.yaml")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds, instead of the file's")
    parser.add_argument(
        "--only", type=lambda names: names.split(","), default=[], metavar="A,B", help="these systems alone"
    )
    parser.add_argument("--queries", metavar="FILE", help="JSONL with _id and text, instead of the file's own")
    parser.add_argument("--duration-s", metavar="S", type=float, help="seconds to measure, instead of the file's")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/NAME-UTC.json)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    # A benchmark that is told to end must not leave its servers behind.
    end_as_interrupted()
    sys.exit(main())
