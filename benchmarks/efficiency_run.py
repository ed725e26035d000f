"""The rounds of an efficiency plan: the server under closed loops, then its engines alone on the same items."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.closed_load import ClosedLoop, Measured, measure
from benchmarks.efficiency_figures import Efficiency, efficiency
from benchmarks.efficiency_plan import EfficiencyPlan, StageLoad, StageName, write_profile
from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ClosedLoad, ExperimentError
from benchmarks.systems import running

LOG_TAIL_CHARACTERS = 2000

Record = dict[str, str]


@dataclass(frozen=True, slots=True)
class StageRun:
    """One run of one load, or of the engine alone in one batch size: `items` or requests a second by `setting`."""

    stage: StageName
    side: str
    round_index: int
    setting: int
    rate_per_s: float
    details: dict[str, Any]


class EfficiencyRun:
    """All rounds of one plan. The items are what the server finds in the first round, for its stores do not change."""

    def __init__(self, plan: EfficiencyPlan, note: Callable[[str], None]) -> None:
        """Raises ExperimentError where the queries can't be read."""
        self._plan = plan
        self._note = note
        texts = list(plan.query_texts())
        random.Random(plan.seed).shuffle(texts)
        self._queries = {name: texts[: load.num_queries] for name, load in plan.stages.items()}
        self._items: dict[StageName, list[Record]] = {}
        self._runs: list[StageRun] = []

    def run(self) -> dict[str, Any]:
        """Go through all rounds and return the result file's own part.

        Raises ExperimentError where a server or an engine can't be measured, or answers without the stage.
        """
        plan = self._plan
        folder = Path(tempfile.mkdtemp(prefix=f"{plan.name}-"))
        profile = folder / "profile.yaml"
        write_profile(Path(plan.profile), plan.candidates, profile)
        self._note(f"profile, items and what the server prints are in {folder}")
        for round_index in range(plan.rounds):
            turns: list[Callable[[int, Path], None]] = [self._ask_server, self._run_engines]
            for turn in turns if plan.server_begins(round_index) else reversed(turns):
                turn(round_index, profile)
        return {
            "efficiency": plan.model_dump(mode="json"),
            "stages": {name: self._compare(name) for name in plan.stages},
            "runs": [asdict(run) for run in self._runs],
        }

    def _ask_server(self, round_index: int, profile: Path) -> None:
        plan = self._plan
        server = plan.server_with(profile)
        self._note(f"round {round_index + 1} of {plan.rounds}: starting the server")
        log = profile.with_name(f"server-{round_index}.log")
        with running("server", server, log, plan.start_timeout_s, self._note):
            for index, (name, load) in enumerate(plan.stages.items()):
                if name not in self._items:
                    self._items[name] = self._find_items(name, load)
                bodies = [load.target.encode(query) for query in self._queries[name]]
                loop = ClosedLoop(server.url, load.target, bodies, load.warmup_s, load.duration_s, plan.timeout_s)
                for clients in load.clients:
                    seed = (plan.seed, index, clients, round_index)
                    measured = asyncio.run(measure(loop, ClosedLoad(kind="closed", clients=clients), seed))
                    self._keep_load(name, round_index, clients, measured)

    def _find_items(self, name: StageName, load: StageLoad) -> list[Record]:
        """What the engine gets alone: the texts, or the candidates that the server would rerank."""
        if name == "embed":
            return [{"text": query} for query in self._queries[name]]
        records: list[Record] = []
        with httpx.Client(base_url=self._plan.server.url, timeout=self._plan.timeout_s, trust_env=False) as http:
            for query in self._queries[name]:
                search = json.loads(load.target.encode(query)) | {"rerank": False, "k": self._plan.candidates}
                records += [{"query": query, **candidate} for candidate in _candidates(http, load.target.path, search)]
        if not records:
            raise ExperimentError("the searches find nothing, so there is nothing to rerank; is the collection there?")
        return records

    def _keep_load(self, name: StageName, round_index: int, clients: int, measured: Measured) -> None:
        summary = measured.summary
        self._note(f"  {name}, {clients} clients: {summary.requests_per_s:.2f} requests/s")
        if summary.num_failed or not summary.num_succeeded:
            raise ExperimentError(f"{name}: {summary.num_failed} requests failed, {summary.error_examples}")
        if summary.degraded:
            raise ExperimentError(f"{name}: answers did without {summary.degraded}; raise the lane's timeouts")
        details = {
            "window": asdict(measured.window),
            "client_cpu_share": measured.client_cpu_share,
            "summary": asdict(summary),
            "stages": [asdict(stage) for stage in measured.stages],
        }
        self._runs.append(StageRun(name, "server", round_index, clients, summary.requests_per_s, details))

    def _run_engines(self, round_index: int, profile: Path) -> None:
        for name, load in self._plan.stages.items():
            self._note(f"round {round_index + 1} of {self._plan.rounds}: the engine of {name} alone")
            for rate in self._engine_rates(name, load, profile):
                budget, items_per_s = rate.pop("max_batch_tokens"), rate.pop("items_per_s")
                self._note(f"  {name}, at most {budget} tokens: {items_per_s:.1f} items/s")
                self._runs.append(StageRun(name, "engine", round_index, budget, items_per_s, rate))

    def _engine_rates(self, name: StageName, load: StageLoad, profile: Path) -> list[dict[str, Any]]:
        """A program of its own, since its packages are the server's."""
        items, out = profile.with_name(f"{name}-items.json"), profile.with_name(f"{name}-alone.json")
        items.write_text(json.dumps(self._items[name]), encoding="utf-8")
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.baselines.engine_alone", name, "--profile", str(profile)]
        command += ["--items", str(items), "--out", str(out), "--at-least-s", str(self._plan.engine_s)]
        command += ["--max-batch-tokens", *map(str, load.max_batch_tokens)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            tail = done.stderr[-LOG_TAIL_CHARACTERS:]
            raise ExperimentError(f"the engine of {name} alone ended with code {done.returncode}:\n{tail}")
        rates: list[dict[str, Any]] = json.loads(out.read_bytes())["rates"]
        return rates

    def _compare(self, name: StageName) -> dict[str, Any]:
        items_per_request = len(self._items[name]) / len(self._queries[name])
        found = efficiency(self._rates(name, "server"), self._rates(name, "engine"), items_per_request)
        return {
            "num_items": len(self._items[name]),
            "items_per_request": items_per_request,
            "goal_met": _goal_met(self._plan.stages[name].goal, found),
            **asdict(found),
        }

    def _rates(self, name: StageName, side: str) -> dict[int, list[float]]:
        rates: defaultdict[int, list[float]] = defaultdict(list)
        for run in self._runs:
            if (run.stage, run.side) == (name, side):
                rates[run.setting].append(run.rate_per_s)
        return dict(rates)


def _candidates(http: httpx.Client, path: str, search: dict[str, Any]) -> list[Record]:
    """Title and text of what the search finds. Raises ExperimentError where it does not answer as it should."""
    try:
        response = http.post(path, json=search)
        response.raise_for_status()
        return [{"title": str(one["title"]), "text": str(one["text"])} for one in response.json()["results"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"the server does not search as it should: {error!r}") from error


def _goal_met(goal: float | None, found: Efficiency) -> bool | None:
    return None if goal is None else found.ratio.of_medians >= goal
