"""Recorded traffic: when requests came, and what they asked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks.experiment import ExperimentError


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One line of a trace: seconds since the trace began, and the query where it was recorded."""

    at_s: float
    query: str | None = None


def read_trace(path: Path) -> list[TracedRequest]:
    """Read a JSONL file of `{"at_s": 1.25, "query": "..."}`, in the order of time.

    The lines may be in another order, as a log that is written when requests end has them. Other keys are left alone.
    Raises ExperimentError naming the line that is wrong.
    """
    requests = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    requests.append(_parse(line, f"{path}, line {number}"))
    except OSError as error:
        raise ExperimentError(f"can't read the trace {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExperimentError(f"can't read the trace {path}: {error}") from error
    if not requests:
        raise ExperimentError(f"the trace {path} holds no requests")
    return sorted(requests, key=attrgetter("at_s"))


def _parse(line: str, place: str) -> TracedRequest:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ExperimentError(f"{place}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ExperimentError(f"{place}: not a JSON object with `at_s`")
    query = record.get("query")
    if query is not None and not isinstance(query, str):
        raise ExperimentError(f"{place}: `query` is not a string")
    return TracedRequest(_seconds(record, place), query)


def _seconds(record: dict[str, Any], place: str) -> float:
    at_s = record.get("at_s")
    if isinstance(at_s, bool) or not isinstance(at_s, int | float):
        raise ExperimentError(f"{place}: `at_s` is not a number of seconds")
    if not (math.isfinite(at_s) and at_s >= 0):
        raise ExperimentError(f"{place}: `at_s` is {at_s}, not a time after the trace's beginning")
    return float(at_s)
