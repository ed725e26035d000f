"""What an experiment file may say, and how it is read: target, queries, loads and limits of one benchmark."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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
    """The request that is sent for each query: `{query}` in any string of `body` stands for the query's text.

    A string that is `{NAME}` and nothing else stands for that field of the query's record, whatever its type.
    """

    path: str = Field(pattern="^/")
    method: Literal["GET", "POST"] = "POST"
    body: dict[str, Any] | None = None

    @field_validator("body")
    @classmethod
    def _body_names_the_query(cls, body: dict[str, Any] | None) -> dict[str, Any] | None:
        if body is not None and PLACEHOLDER not in json.dumps(body):
            raise ValueError(f"no string in the body contains {PLACEHOLDER}; every request would be the same")
        return body

    def encode(self, query: str, record: Mapping[str, Any] | None = None) -> bytes:
        """Return the request's body for a query as JSON, or no bytes where the target has no body."""
        if self.body is None:
            return b""
        return json.dumps(_fill(self.body, query, record or {}), ensure_ascii=False).encode()


Rate = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Arrivals = Literal["poisson", "constant"]


class _Load(Section):
    """`with_ingest` is whether the experiment's `ingest`, where it has one, runs beside this load."""

    with_ingest: bool = True


class _ScheduledLoad(_Load):
    """Requests come at times of their own, whatever the server does.

    An arrival that finds `max_in_flight` requests unanswered is counted as the error `client_limit` and not sent.
    """

    max_in_flight: int = Field(default=512, ge=1, le=4096)


class ClosedLoad(_Load):
    """`clients` users, each of whom sends the next request as soon as the last one is answered."""

    kind: Literal["closed"]
    clients: int = Field(ge=1, le=1024)


class OpenLoad(_ScheduledLoad):
    """Requests that arrive at a rate, evenly spaced or at random."""

    kind: Literal["open"]
    rate_per_s: Rate
    arrivals: Arrivals = "poisson"


class ReplayLoad(_ScheduledLoad):
    """Requests that arrive when those of a recorded trace did, `speed` times as fast.

    `trace` is a JSONL file of `{"at_s": 1.25, "query": "..."}`, see benchmarks/trace_file.py; a line without a query
    takes the next one of the experiment's. The trace's first `warmup_s` seconds, as replayed, are the warm-up.
    """

    kind: Literal["replay"]
    trace: str = Field(min_length=1)
    speed: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class RampLoad(_ScheduledLoad):
    """An open load in `steps` stages at evenly spaced rates, up or down; each is a run of its own with its warm-up."""

    kind: Literal["ramp"]
    from_rate_per_s: Rate
    to_rate_per_s: Rate
    steps: int = Field(ge=2, le=100)
    arrivals: Arrivals = "poisson"

    def open_loads(self) -> list[OpenLoad]:
        """Return the steps in their order, the first at `from_rate_per_s` and the last at `to_rate_per_s`."""
        rise = (self.to_rate_per_s - self.from_rate_per_s) / (self.steps - 1)
        return [
            OpenLoad(
                kind="open",
                rate_per_s=round(self.from_rate_per_s + step * rise, 6),
                arrivals=self.arrivals,
                max_in_flight=self.max_in_flight,
                with_ingest=self.with_ingest,
            )
            for step in range(self.steps)
        ]


class Criterion(Section):
    """What a rate must hold to count as sustained; benchmarks/sustained.py says how it is judged.

    `answered_share`: least whole answers by requests offered, within the window. `error_share`: most failures and
    answers without a stage by requests. `slope` (seconds per second) and `growth` (ratio): latency that rises faster
    than the one and by more than the other from the window's first third to its last is a queue that grows.
    """

    answered_share: float = Field(default=0.95, gt=0, le=1)
    error_share: float = Field(default=0.01, ge=0, lt=1)
    slope: float = Field(default=0.02, ge=0, allow_inf_nan=False)
    growth: float = Field(default=1.5, ge=1, allow_inf_nan=False)


class SaturationLoad(_ScheduledLoad):
    """A search for the highest rate of Poisson arrivals that the server sustains, to a relative `precision`.

    Each probe is a run of its own; an experiment with an `slo` asks every probe to meet it.
    """

    kind: Literal["saturation"]
    start_rate_per_s: Rate
    max_rate_per_s: Rate
    precision: float = Field(default=0.05, ge=0.005, le=1)
    max_probes: int = Field(default=24, ge=2, le=100)
    criterion: Criterion = Criterion()

    @model_validator(mode="after")
    def _starts_below_its_end(self) -> Self:
        if self.start_rate_per_s > self.max_rate_per_s:
            raise ValueError("start_rate_per_s is above max_rate_per_s")
        return self

    def probe(self, rate_per_s: float) -> OpenLoad:
        """Return the load of one probe."""
        return OpenLoad(
            kind="open", rate_per_s=rate_per_s, max_in_flight=self.max_in_flight, with_ingest=self.with_ingest
        )


SingleLoad = ClosedLoad | OpenLoad | ReplayLoad
Load = Annotated[ClosedLoad | OpenLoad | ReplayLoad | RampLoad | SaturationLoad, Field(discriminator="kind")]


class Slo(Section):
    """What users are promised, each in seconds, none where null: see benchmarks/goodput.py.

    `request_p99_s` bounds the whole request, `ttft_s` the time to the first token and `itl_s` a request's mean time
    between tokens, the latter two of streams only.
    """

    request_p99_s: float | None = Field(default=3.0, gt=0, allow_inf_nan=False)
    ttft_s: float | None = Field(default=0.3, gt=0, allow_inf_nan=False)
    itl_s: float | None = Field(default=0.1, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _promises_something(self) -> Self:
        if self.request_p99_s is self.ttft_s is self.itl_s is None:
            raise ValueError("every limit is null; leave the slo out instead")
        return self


class Ingest(Section):
    """Documents that are written while the queries run, at most `rate_documents_per_s` of them, a batch at a time.

    `documents` is a JSONL file in BEIR's corpus layout (`_id`, `title`, `text`) or a folder, each paragraph of whose
    Markdown files is a document. They are gone through over and over and keep their ids, so a second pass replaces
    those of the first. They go to a collection of their own unless `collection` names the one that is queried, and are
    not deleted afterwards.
    """

    documents: str = Field(min_length=1)
    collection: str = Field(default="benchmark_ingest", min_length=1)
    rate_documents_per_s: Rate
    batch_size: int = Field(default=16, ge=1, le=1000)
    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)


class Experiment(Section):
    """One benchmark. Each load runs `repeats` times, for `warmup_s` (discarded) and then `duration_s` (measured).

    `queries` is a list of texts or the path of a JSONL file with `_id` and `text`; it is gone through over and over, in
    an order shuffled with `seed`. `max_requests` ends one run of a load early. With `stream` the answers are
    server-sent events `token`, `done` and `error`. `server_stages` asks the server for its own counters, GET
    /v1/stages, before and after each run; a server that has none is measured without.
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
    slo: Slo | None = None
    ingest: Ingest | None = None
    server_stages: bool = True

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
    return {name: str(record["text"]) for name, record in read_records(path).items()}


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Read the records of such a file by id, whatever else than `_id` and `text` they hold. Raises ExperimentError."""
    queries: dict[str, dict[str, Any]] = {}
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    record = json.loads(line)
                    queries[str(record["_id"])] = {**record, "text": str(record["text"])}
    except OSError as error:
        raise ExperimentError(
            f"can't read the queries {path}: {error.strerror}; name another file (--queries)"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"{path}, line {number}: not a JSON object with `_id` and `text`") from error
    if not queries:
        raise ExperimentError(f"{path} holds no queries")
    return queries


def _fill(value: Any, query: str, record: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        field = value[1:-1] if value.startswith("{") and value.endswith("}") else ""
        return record[field] if field in record else value.replace(PLACEHOLDER, query)
    if isinstance(value, dict):
        return {key: _fill(item, query, record) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, query, record) for item in value]
    return value


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{place}: {message}" if place else message)
    return "; ".join(problems)
