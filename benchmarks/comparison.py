"""What a comparison file may say, and how it is read: several systems, and the same loads for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from benchmarks.experiment import ClosedLoad, ExperimentError, Section, Target, read_records

Command = tuple[str, ...]


class System(Section):
    """One server: how it is started, when it is ready, and what it is asked.

    In `command`, `setup` and the values of `env`, `{env:NAME}` stands for an environment variable and `{scratch}` for a
    folder that is made for this start and removed after it. A program `python` or `raglane` is the one of the
    environment that runs the benchmark. `setup` commands run once the server is ready, and no load counts them.
    """

    command: Command = Field(min_length=1)
    url: str = Field(pattern=r"^http://")
    ready: str = Field(default="/health/ready", pattern="^/")
    env: dict[str, str] = Field(default_factory=dict)
    target: Target | None = Field(default=None, description="What it is asked, where that differs from the others.")
    setup: tuple[Command, ...] = ()
    ports: tuple[int, ...] = Field(default=(), description="Ports that it takes besides the URL's; free once it ends.")
    optional: bool = Field(default=False, description="Leave it out, with a note, where one of its variables is unset.")
    verify: bool = Field(default=True, description="Whether its answers have to agree with those of the first system.")


class Verification(Section):
    """What answers must have in common: the values at `at`, a path such as `results.*.id`, in their order.

    `min_overlap` bounds the mean share of values that both answers hold, `min_same_order` the share of queries whose
    answers are equal: rounding in bfloat16 swaps passages with almost the same score.
    """

    at: str = Field(min_length=1)
    num_queries: int = Field(default=50, ge=1)
    min_overlap: float = Field(default=0.99, ge=0, le=1)
    min_same_order: float = Field(default=0.8, ge=0, le=1)


class Comparison(Section):
    """Systems that are measured in turn, the first of them against each of the others.

    In each round every system is started, asked by every load, and stopped; every other round takes them in the
    opposite order, so that a machine that grows slower favours none. The queries come in the same order to all systems.
    """

    name: str = Field(pattern="^[a-z0-9_]+$")
    seed: int = Field(default=0, ge=0)
    systems: dict[str, System] = Field(min_length=1)
    target: Target | None = None
    queries: str | tuple[str, ...] = Field(min_length=1)
    loads: tuple[ClosedLoad, ...] = Field(min_length=1)
    rounds: int = Field(default=3, ge=1)
    warmup_s: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    duration_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    max_requests: int = Field(default=100_000, ge=1)
    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    start_timeout_s: float = Field(default=180.0, gt=0, allow_inf_nan=False)
    verify: Verification | None = None

    @model_validator(mode="after")
    def _every_system_has_a_target(self) -> Comparison:
        for name, system in self.systems.items():
            if system.target is None and self.target is None:
                raise ValueError(f"system {name!r} has no target, and there is none for all")
        return self

    def target_of(self, name: str) -> Target:
        """What the system is asked."""
        target = self.systems[name].target or self.target
        assert target is not None, "checked when the file was read"
        return target

    def order(self, names: Sequence[str], round_index: int) -> list[str]:
        """The systems in the order of one round: as they stand in the file, and backwards in every other round."""
        return list(names) if round_index % 2 == 0 else list(reversed(names))

    def query_records(self) -> list[dict[str, Any]]:
        """The queries, each with its `text`, in the order of their source. Raises ExperimentError if there are none."""
        if not isinstance(self.queries, str):
            return [{"text": text} for text in self.queries]
        return list(read_records(Path(self.queries)).values())


def read_comparison(path: Path, overrides: dict[str, object] | None = None) -> Comparison:
    """Read a comparison file, with `overrides` in place of its top-level keys. Raises ExperimentError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"can't read the comparison {path}: {error}") from error
    if not isinstance(data, dict):
        raise ExperimentError(f"{path}: a comparison is a mapping of keys to values")
    try:
        return Comparison.model_validate({**data, **(overrides or {})})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}" for p in error.errors()]
        raise ExperimentError(f"{path}: {'; '.join(problems)}") from error
