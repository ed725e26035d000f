"""Trace files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.experiment import ExperimentError
from benchmarks.trace_file import TracedRequest, read_trace


def write(folder: Path, *lines: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_trace_is_read_in_the_order_of_time_with_queries_where_they_are(tmp_path: Path) -> None:
    path = write(
        tmp_path, '{"at_s": 2, "query": "later"}', "", '{"at_s": 0.5, "user": "x"}', '{"at_s": 2, "query": null}'
    )
    assert read_trace(path) == [TracedRequest(0.5), TracedRequest(2.0, "later"), TracedRequest(2.0)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("at 3 s", "not JSON"),
        ("[3]", "not a JSON object"),
        ('{"query": "when?"}', "`at_s` is not a number"),
        ('{"at_s": "3"}', "`at_s` is not a number"),
        ('{"at_s": true}', "`at_s` is not a number"),
        ('{"at_s": -1}', "not a time after"),
        ('{"at_s": NaN}', "not a time after"),
        ('{"at_s": 1, "query": 7}', "`query` is not a string"),
    ],
)
def test_a_line_that_is_wrong_is_named_with_what_is_wrong_about_it(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ExperimentError, match=f"line 3: .*{problem}"):
        read_trace(write(tmp_path, '{"at_s": 0}', "", line, '{"at_s": 4}'))


def test_a_trace_that_is_not_there_or_empty_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"absent\.jsonl"):
        read_trace(tmp_path / "absent.jsonl")
    with pytest.raises(ExperimentError, match="holds no requests"):
        read_trace(write(tmp_path, ""))
