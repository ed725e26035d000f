"""Result files as JSON lines and CSV, and which files are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.exports import RUN_COLUMNS, STAGE_COLUMNS, export, main
from benchmarks.run import EXIT_OK, EXIT_USAGE
from benchmarks.throughput_result import ResultFileError, read_result
from tests import throughput_results as made


def exported(folder: Path, content: dict[str, Any]) -> tuple[list[Any], list[dict[str, str]], list[dict[str, str]]]:
    """The rows of the three files, read back."""
    samples, runs, stages = export(read_result(made.write(folder / "small.json", content)), folder)
    tables = []
    for path in (runs, stages):
        with path.open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file, strict=True)))
    return [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()], tables[0], tables[1]


def test_every_request_is_a_line_with_the_run_that_it_belongs_to(tmp_path: Path) -> None:
    requests = [made.sample(latency_s=0.25), made.sample(status=429, error_kind="shed")]
    load = made.measured(made.offered(20), 0.1, 20.0, step=3, repeats=2, samples=requests)
    lines, _, _ = exported(tmp_path, made.result(made.measured(made.closed(4), 0.1, 9.0), load, name="ramp"))
    assert len(lines) == 1 + 2 * 2
    assert lines[0]["load"]["clients"] == 4
    assert lines[0]["step"] is None
    last = lines[-1]
    assert (last["experiment"], last["load"]["rate_per_s"], last["step"], last["repeat"]) == ("ramp", 20, 3, 1)
    assert (last["status"], last["error_kind"]) == (429, "shed")
    assert lines[1]["latency_s"] == 0.25
    assert lines[1]["timings"] == requests[0]["timings"]


def test_every_run_is_a_row_with_its_numbers(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {
        "num_failed": 9,
        "shed": 5,
        "timeouts": 3,
        "errors": {"shed": 5, "timeout": 2, "deadline": 1, "unheard_of": 1},
        "degraded": {"rerank": 7, "rewrite": 1},
        "ttft": made.distribution(0.05),
        "goodput": made.GOODPUT,
    }
    ingest = {"documents": 40, "batches": 4, "documents_per_s": 4.0, "errors": {"http_5xx": 2}}
    load = made.measured(made.closed(8), 0.2, 38.0, repeats=2, run={"ingest": ingest}, **numbers)
    _, runs, _ = exported(tmp_path, made.result(load))
    assert [row["repeat"] for row in runs] == ["0", "1"]
    row = runs[0]
    assert tuple(row) == RUN_COLUMNS
    assert (row["kind"], row["clients"], row["rate_per_s"], row["step"]) == ("closed", "8", "", "")
    assert float(row["requests_per_s"]) == 38.0
    assert (row["num_failed"], row["shed"], row["timeouts"]) == ("9", "5", "3")
    assert (row["errors_deadline"], row["errors_http_5xx"], row["errors_other"]) == ("1", "0", "1")
    assert json.loads(row["degraded"]) == {"rerank": 7, "rewrite": 1}
    assert float(row["latency_p99_s"]) == pytest.approx(0.6)
    assert float(row["ttft_p50_s"]) == 0.05
    assert row["inter_token_p50_s"] == ""
    assert (row["goodput_good"], row["goodput_good_per_s"], row["goodput_met"]) == ("80", "9.5", "false")
    assert (row["ingest_documents"], row["ingest_errors"]) == ("40", "2")


def test_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    _, (row,), stages = exported(tmp_path, made.result(made.measured(made.closed(1), None, 0.0)))
    empty = {name for name, value in row.items() if value == ""}
    expected = ("rate_per_s", "step", "latency_p50_s", "latency_count", "goodput_met", "ingest_errors")
    assert empty.issuperset(expected)
    assert stages == []


def test_a_file_that_says_nothing_of_stages_left_out_can_be_read(tmp_path: Path) -> None:
    content = made.result(made.measured(made.closed(1), 0.1, 9.0))
    assert exported(tmp_path, content)[1][0]["degraded"] == "{}"
    del content["loads"][0]["summary"]["degraded"]
    assert exported(tmp_path, content)[1][0]["degraded"] == ""


def test_every_stage_of_every_run_is_a_row(tmp_path: Path) -> None:
    content = made.result(made.measured(made.closed(8), 0.2, 40.0, repeats=3))
    _, _, stages = exported(tmp_path, content)
    assert len(stages) == 3 * len(made.STAGES)
    assert tuple(stages[0]) == STAGE_COLUMNS
    assert [row["stage"] for row in stages[: len(made.STAGES)]] == list(made.STAGES)
    embed = stages[1]
    of_file = content["loads"][0]["stages"][1]
    assert float(embed["mean_s"]) == of_file["total"]["mean_s"]
    assert float(embed["mean_compute_s"]) == of_file["mean_compute_s"]
    assert float(embed["mean_batch_size"]) == of_file["mean_batch_size"]


def test_a_stage_with_commas_quotes_and_line_breaks_in_its_name_keeps_it(tmp_path: Path) -> None:
    name = 'search "vector",\nsecond line; é'
    _, _, stages = exported(tmp_path, made.result(made.measured(made.closed(1), 0.1, 5.0, stages=[name])))
    assert [row["stage"] for row in stages] == [name]


def test_the_columns_are_the_same_whatever_the_file_holds(tmp_path: Path) -> None:
    headers = set()
    for number, load in enumerate((made.closed(1), made.offered(5), {"kind": "replay", "trace": "t", "speed": 2.0})):
        result = read_result(made.write(tmp_path / f"{number}.json", made.result(made.measured(load, 0.1, 5.0))))
        _, runs, _ = export(result, tmp_path)
        headers.add(runs.read_text(encoding="utf-8").splitlines()[0])
    assert len(headers) == 1


def test_the_command_writes_beside_the_result_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made.write(tmp_path / "small.json", made.closed_result())
    assert main([str(path)]) == EXIT_OK
    assert main([str(path), "--out", str(tmp_path / "new" / "folder")]) == EXIT_OK
    ends = ("samples.jsonl", "runs.csv", "stages.csv")
    expected = [folder / f"small.{end}" for folder in (tmp_path, tmp_path / "new" / "folder") for end in ends]
    assert capsys.readouterr().out.split() == list(map(str, expected))
    assert all(path.is_file() for path in expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ('{"schema_version": 1, "loads": []}', "schema_version 1, and 2 is needed"),
        ('{"queries": 300}', "schema_version None"),
        ('{"schema_version": 2, "queries": 300}', "not a result of benchmarks.run: command"),
    ],
)
def test_a_file_that_is_no_result_of_this_version_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ResultFileError, match=reason):
        read_result(path)


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere.json")]) == EXIT_USAGE
    assert "nowhere.json: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python -m benchmarks.run benchmarks/experiments/a.yaml", None),
        (
            "python -m benchmarks.run /some/a.yaml --out=/else/b.json",
            "python -m benchmarks.run a.yaml --out=b.json",
        ),
        (r"python -m benchmarks.run 'C:\some\a.yaml'", "python -m benchmarks.run a.yaml"),
        ("python -m benchmarks.run a.yaml --url http://127.0.0.1:8000", None),
    ],
)
def test_a_command_is_shown_without_the_folders_of_its_machine(tmp_path: Path, command: str, shown: str | None) -> None:
    result = read_result(made.write(tmp_path / "small.json", made.closed_result(command=command)))
    assert result.shown_command == (shown or command)
