"""What an experiment file may say, and how it is read: target, queries, loads and limits of one benchmark."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

PLACEHOLDER = "{query}"


class ExperimentError(Exception):
    """The experiment can't be run as it is written; the message says what to change."""


class Section(BaseModel):
    """A frozen part of the file. A key that it does not know is refused with its name and the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.0)[0]
                    raise ValueError(f"unknown key {key!r}; did you mean {near!r}?")
        return data


class Target(Section):
    """The request that is sent for each query: `{query}` in any string of `body` stands for the query's text."""

    path: str = Field(pattern="^/")
    method: Literal["GET", "POST"] = "POST"
    body: dict[str, Any] | None = None

    @field_validator("body")
    @classmethod
    def _body_names_the_query(cls, body: dict[str, Any] | None) -> dict[str, Any] | None:
        if body is not None and PLACEHOLDER not in json.dumps(body):
            raise ValueError(f"no string in the body contains {PLACEHOLDER}; every request would be the same")
        return body

    def encode(self, query: str) -> bytes:
        """Return the request's body for `query` as JSON, or no bytes where the target has no body."""
        if self.body is None:
            return b""
        return json.dumps(_fill(self.body, query), ensure_ascii=False).encode()


class ClosedLoad(Section):
    """`clients` users, each of whom sends the next request as soon as the last one is answered."""

    kind: Literal["closed"]
    clients: int = Field(ge=1, le=1024)


class OpenLoad(Section):
    """Requests that arrive at a rate of their own, whatever the server does.

    An arrival that finds `max_in_flight` requests unanswered is counted as the error `client_limit` and not sent.
    """

    kind: Literal["open"]
    rate_per_s: float = Field(gt=0, allow_inf_nan=False)
    arrivals: Literal["poisson", "constant"] = "poisson"
    max_in_flight: int = Field(default=512, ge=1, le=4096)


Load = Annotated[ClosedLoad | OpenLoad, Field(discriminator="kind")]


class Experiment(Section):
    """One benchmark. Each load runs `repeats` times, for `warmup_s` (discarded) and then `duration_s` (measured).

    `queries` is a list of texts or the path of a JSONL file with `_id` and `text`; it is gone through over and over, in
    an order shuffled with `seed`. `max_requests` ends one run of a load early. With `stream` the answers are
    server-sent events `token`, `done` and `error`.
    """

    name: str = Field(pattern="^[a-z0-9_]+$")
    seed: int = Field(default=0, ge=0)
    target: Target
    queries: str | tuple[str, ...] = Field(min_length=1)
    loads: tuple[Load, ...] = Field(min_length=1)
    warmup_s: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    duration_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    max_requests: int = Field(default=100_000, ge=1)
    timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    stream: bool = False
    repeats: int = Field(default=1, ge=1)

    @property
    def horizon_s(self) -> float:
        """The time after which a load starts no request any more."""
        return self.warmup_s + self.duration_s

    def query_texts(self) -> tuple[str, ...]:
        """Return the texts of the queries in the order of their source. Raises ExperimentError if there are none."""
        if not isinstance(self.queries, str):
            return self.queries
        return tuple(read_queries(Path(self.queries)).values())


def read_experiment(path: Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read an experiment file, with `overrides` in place of its top-level keys. Raises ExperimentError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"can't read the experiment {path}: {error}") from error
    if not isinstance(data, dict):
        raise ExperimentError(f"{path}: an experiment is a mapping of keys to values")
    try:
        return Experiment.model_validate({**data, **(overrides or {})})
    except ValidationError as error:
        raise ExperimentError(f"{path}: {_explain(error)}") from error


def read_queries(path: Path) -> dict[str, str]:
    """Read texts by id from a JSONL file in BEIR's layout. Raises ExperimentError naming the line that is wrong."""
    queries: dict[str, str] = {}
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    record = json.loads(line)
                    queries[str(record["_id"])] = str(record["text"])
    except OSError as error:
        raise ExperimentError(
            f"can't read the queries {path}: {error.strerror}; name another file (--queries)"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{path}, line {number}: not a JSON object with `_id` and `text`") from error
    if not queries:
        raise ExperimentError(f"{path} holds no queries")
    return queries


def _fill(value: Any, query: str) -> Any:
    if isinstance(value, str):
        return value.replace(PLACEHOLDER, query)
    if isinstance(value, dict):
        return {key: _fill(item, query) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, query) for item in value]
    return value


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{place}: {message}" if place else message)
    return "; ".join(problems)
