"""What an efficiency file may say, how it is read, and what becomes of the profile that it names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from benchmarks.comparison import System
from benchmarks.experiment import ExperimentError, Section, Target, read_queries

PROFILE_PLACEHOLDER = "{profile}"

StageName = Literal["rerank", "embed"]


class StageLoad(Section):
    """One stage as the bottleneck: what the server is asked for, and the batches that its engine gets when alone.

    Closed loops of each number of `clients` are run, and `max_batch_tokens` are the budgets in padded tokens; the best
    of either counts. Both get the first `num_queries` of the queries in an order shuffled with the seed. The target of
    `rerank` is a search; what its engine reads alone are the candidates of the same search without reranking.
    """

    target: Target
    clients: tuple[int, ...] = Field(min_length=1)
    max_batch_tokens: tuple[int, ...] = Field(min_length=1)
    num_queries: int = Field(ge=1)
    warmup_s: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    duration_s: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    goal: float | None = Field(default=None, gt=0, description="The efficiency that is aimed for.")


class EfficiencyPlan(Section):
    """How much of its bottleneck's engine a server uses.

    Every other round begins with the engines instead of the server. `{profile}` in the server's command stands for a
    copy of the file `profile` with `candidates` as its `lane.rerank_candidates`; the engines are configured by the same
    copy.
    """

    name: str = Field(pattern="^[a-z0-9_]+$")
    seed: int = Field(default=0, ge=0)
    profile: str = Field(min_length=1)
    candidates: int = Field(default=20, ge=1, description="Pairs that one search gives to the cross-encoder.")
    server: System
    queries: str | tuple[str, ...] = Field(min_length=1)
    stages: dict[StageName, StageLoad] = Field(min_length=1)
    rounds: int = Field(default=4, ge=1)
    engine_s: float = Field(default=5.0, gt=0, description="Each batch size is measured for at least so long.")
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    start_timeout_s: float = Field(default=180.0, gt=0, allow_inf_nan=False)

    def server_begins(self, round_index: int) -> bool:
        """Whether the server has its turn before the engines: A B B A, since a machine may grow slower."""
        return round_index % 2 == 0

    def query_texts(self) -> tuple[str, ...]:
        """The texts of the queries in the order of their source. Raises ExperimentError if there are none."""
        return tuple(read_queries(Path(self.queries)).values()) if isinstance(self.queries, str) else self.queries

    def server_with(self, profile: Path) -> System:
        """The server over this copy of the profile."""
        command = tuple(part.replace(PROFILE_PLACEHOLDER, str(profile)) for part in self.server.command)
        return self.server.model_copy(update={"command": command})


def read_plan(path: Path, overrides: dict[str, object] | None = None) -> EfficiencyPlan:
    """Read an efficiency file, with `overrides` in place of its top-level keys. Raises ExperimentError."""
    data = _read_yaml(path)
    try:
        return EfficiencyPlan.model_validate({**data, **(overrides or {})})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}" for p in error.errors()]
        raise ExperimentError(f"{path}: {'; '.join(problems)}") from error


def write_profile(source: Path, candidates: int, out: Path) -> None:
    """Copy a Serve config file with another number of candidates to rerank. Raises ExperimentError."""
    out.write_text(yaml.safe_dump(with_candidates(_read_yaml(source), candidates), sort_keys=False), encoding="utf-8")


def with_candidates(document: dict[str, Any], candidates: int) -> dict[str, Any]:
    """The Serve config document with this many candidates to rerank in each of its applications."""
    changed = copy.deepcopy(document)
    for application in changed["applications"]:
        application.setdefault("args", {}).setdefault("lane", {})["rerank_candidates"] = candidates
    return changed


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"can't read {path}: {error}") from error
    if not isinstance(data, dict):
        raise ExperimentError(f"{path}: not a mapping of keys to values")
    return data
