"""A whole result file of `benchmarks.run`: what the tables, exports, plots and pages are made from."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from pathlib import Path, PurePath, PureWindowsPath
from statistics import median
from typing import Any

from pydantic import ValidationError

from benchmarks.result_file import SCHEMA_VERSION
from benchmarks.result_parts import (
    Family,
    Load,
    Medians,
    Quantiles,
    ResultPart,
    Run,
    Saturation,
    StageMedians,
    StageTotals,
)


class ResultFileError(Exception):
    """The file is not a result that can be shown; the message says why."""


class ThroughputResult(ResultPart):
    """One result file. `name` is its experiment's, `stem` the file's own, by which what is made from it is named."""

    stem: str
    command: str
    experiment: dict[str, Any]
    url: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    started_at: str
    loads: tuple[Run, ...]
    medians: tuple[Medians, ...]
    saturation: tuple[Saturation, ...] = ()

    @property
    def name(self) -> str:
        return str(self.experiment.get("name", self.stem))

    @property
    def shown_command(self) -> str:
        """The command without the folders of the machine it was given on."""
        return shlex.join(_without_folders(word) for word in shlex.split(self.command))

    @property
    def promise(self) -> str:
        """What the experiment asks of a good request; nothing where it asks nothing."""
        return next((run.summary.goodput.promise for run in self.loads if run.summary.goodput is not None), "")

    def runs_of(self, medians: Medians) -> list[Run]:
        """Return the repeats of which `medians` are the medians."""
        return [
            run
            for run in self.loads
            if (run.load, run.probe) == (medians.load, medians.probe) and (run.probe or run.step == medians.step)
        ]

    def families(self) -> list[tuple[Family, list[Medians]]]:
        """Return the closed and the open loads that there are, each from the lightest to the heaviest.

        The file has no medians of the probes of a saturation search. Here each rate that was probed is an open load.
        """
        probed = dict.fromkeys(run.load for run in self.loads if run.probe)
        known = [*self.medians, *map(self._medians_of_probes, probed)]
        grouped: list[tuple[Family, list[Medians]]] = []
        for family in ("closed", "open"):
            members = [one for one in known if one.load.family == family]
            if members:
                grouped.append((family, sorted(members, key=self.weight_of)))
        return grouped

    def _medians_of_probes(self, load: Load) -> Medians:
        """The medians over the probes of one rate: every search of an experiment with `repeats` begins at the same."""
        runs = [run for run in self.loads if run.probe and run.load == load]
        summaries = [run.summary for run in runs]
        good_per_s = [summary.goodput.good_per_s for summary in summaries if summary.goodput is not None]
        by_stage: defaultdict[str, list[StageTotals]] = defaultdict(list)
        for run in runs:
            for stage in run.stages:
                by_stage[stage.stage].append(stage)
        return Medians(
            load=load,
            probe=True,
            repeats=len(runs),
            requests_per_s=median(summary.requests_per_s for summary in summaries),
            good_per_s=median(good_per_s) if good_per_s else None,
            latency=Quantiles.medians(summary.latency for summary in summaries),
            ttft=Quantiles.medians(summary.ttft for summary in summaries),
            inter_token=Quantiles.medians(summary.inter_token for summary in summaries),
            stages=tuple(map(StageMedians.of_runs, by_stage.values())),
        )

    def weight_of(self, medians: Medians) -> float:
        """How heavy a load is: its clients, or the requests that it offers in a second."""
        load = medians.load
        if load.clients is not None:
            return load.clients
        if load.rate_per_s is not None:
            return load.rate_per_s
        return max((run.summary.offered_per_s for run in self.runs_of(medians)), default=0.0)

    def heaviest(self) -> Medians | None:
        """Return the heaviest load that has stages to show: of the closed ones if there are any."""
        for _, members in self.families():
            with_stages = [one for one in members if one.stages]
            if with_stages:
                return with_stages[-1]
        return None


def read_result(path: Path) -> ThroughputResult:
    """Read a result file. Raises ResultFileError if it is not one, or one of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultFileError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ResultFileError(f"{path} is not a result of benchmarks.run: it holds no JSON object")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ResultFileError(
            f"{path} has schema_version {version}, and {SCHEMA_VERSION} is needed: run its experiment again"
        )
    try:
        return ThroughputResult.model_validate({**content, "stem": path.stem})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ResultFileError(f"{path} is not a result of benchmarks.run: {place}: {first['msg']}") from error


def _without_folders(word: str) -> str:
    """Return a word of a command with an absolute path, also one behind `--option=`, cut to its last part."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    for kind in (PurePath, PureWindowsPath):
        if kind(value).is_absolute():
            return f"{option}{equals}{kind(value).name}"
    return word
