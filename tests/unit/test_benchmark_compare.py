"""The comparison command, whole: small servers are started in turn, asked, verified, stopped and compared."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import compare
from benchmarks.comparison import Comparison, read_comparison
from benchmarks.experiment import ExperimentError
from benchmarks.measure import Window, summarise
from benchmarks.ratios import agreement, measures_of, median_of, ratio
from benchmarks.records import Sample
from benchmarks.run import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
COMPARISONS = sorted((ROOT / "benchmarks" / "experiments").glob("compare_*.yaml"))

# Answers every question with the ids on its command line, and notes when it starts.
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, journal, *ids = sys.argv[1:]

class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        degraded = ["rerank"] if "hurried" in ids else []
        body = json.dumps({"results": [{"id": one} for one in ids], "degraded": degraded}).encode()
        self.send_response(500 if "broken" in ids else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

with open(journal, "a") as file:
    file.write(f"{ids[0]}\\n")
try:
    ThreadingHTTPServer(("127.0.0.1", int(port)), Answers).serve_forever()
except KeyboardInterrupt:
    pass
"""


@pytest.fixture
def port() -> int:
    return free_port()


def system(folder: Path, port: int, ids: Sequence[str], **changes: Any) -> dict[str, Any]:
    server = folder / "server.py"
    server.write_text(SERVER, encoding="utf-8")
    command = ["python", str(server), str(port), str(folder / "journal"), *ids]
    return {"command": command, "url": f"http://127.0.0.1:{port}", **changes}


def comparison(folder: Path, systems: dict[str, Any], **changes: Any) -> str:
    file = folder / "small.yaml"
    content = {
        "name": "small",
        "systems": systems,
        "target": {"path": "/v1/search", "body": {"query": "{query}"}},
        "queries": ["first question", "second question"],
        "loads": [{"kind": "closed", "clients": 1}, {"kind": "closed", "clients": 2}],
        "rounds": 2,
        "warmup_s": 0,
        "duration_s": 60,
        "max_requests": 8,
        "start_timeout_s": 30,
        **changes,
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(file)


def compared(folder: Path, systems: dict[str, Any], *options: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    """The exit code and the result file, empty where there is none."""
    out = folder / "result.json"
    code = compare.main([comparison(folder, systems, **changes), "--out", str(out), *options])
    return code, json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}


def started(folder: Path) -> list[str]:
    return (folder / "journal").read_text(encoding="utf-8").split()


def test_every_round_turns_the_order_of_the_systems_around(tmp_path: Path, port: int) -> None:
    systems = {name: system(tmp_path, port, [name]) for name in ("a", "b")}
    code, result = compared(tmp_path, systems, rounds=3)
    assert code == EXIT_OK
    assert started(tmp_path) == ["a", "b", "b", "a", "a", "b"]
    assert [run["system"] for run in result["runs"]][::2] == started(tmp_path)


def test_the_result_holds_every_run_and_the_ratios_of_the_first_system_to_the_others(tmp_path: Path, port: int) -> None:
    code, result = compared(tmp_path, {"a": system(tmp_path, port, ["1"]), "b": system(tmp_path, port, ["1"])})
    assert code == EXIT_OK
    assert {"commit", "hardware", "versions", "command", "started_at", "schema_version"} <= result.keys()
    assert len(result["runs"]) == 2 * 2 * 2
    assert all(run["summary"]["num_succeeded"] == 8 for run in result["runs"])
    assert [load["load"]["clients"] for load in result["loads"]] == [1, 2]
    for load in result["loads"]:
        assert list(load["systems"]) == ["a", "b"]
        assert list(load["first_to"]) == ["b"]
        rates = [load["systems"][name]["requests_per_s"] for name in "ab"]
        expected = rates[0]["median"] / rates[1]["median"]
        found = load["first_to"]["b"]["requests_per_s"]
        assert found["of_medians"] == pytest.approx(expected)
        assert found["least"] <= found["greatest"]
        assert load["num_failed"] == {"a": 0, "b": 0}


def test_all_systems_are_asked_the_same_questions_in_the_same_order() -> None:
    file = ROOT / "benchmarks" / "experiments" / "compare_instant.yaml"
    one = read_comparison(file)
    assert {one.target_of(name).encode("why?") for name in one.systems} == {one.target_of("raglane").encode("why?")}


def test_answers_that_agree_are_reported(tmp_path: Path, port: int) -> None:
    systems = {"a": system(tmp_path, port, ["1", "2"]), "b": system(tmp_path, port, ["1", "2"])}
    code, result = compared(tmp_path, systems, verify={"at": "results.*.id"})
    assert code == EXIT_OK
    assert result["agreement"] == {"b": {"num_queries": 2, "overlap": 1.0, "same_order": 1.0}}


@pytest.mark.parametrize("ids", [["1", "3"], ["2", "1"]])
def test_a_system_with_other_answers_ends_the_comparison(
    tmp_path: Path, port: int, ids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    systems = {"a": system(tmp_path, port, ["1", "2"]), "b": system(tmp_path, port, ids)}
    code, result = compared(tmp_path, systems, verify={"at": "results.*.id"})
    assert (code, result) == (EXIT_USAGE, {})
    assert "are not those of 'a'" in capsys.readouterr().err


def test_a_system_of_another_quality_may_be_left_out_of_the_verification(tmp_path: Path, port: int) -> None:
    systems = {"a": system(tmp_path, port, ["1"]), "b": system(tmp_path, port, ["2"], verify=False)}
    code, result = compared(tmp_path, systems, verify={"at": "results.*.id"})
    assert (code, result["agreement"]) == (EXIT_OK, {})


def test_answers_of_another_shape_can_not_be_verified(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = compared(tmp_path, {"a": system(tmp_path, port, ["1"])}, verify={"at": "hits.*.id"})
    assert code == EXIT_USAGE
    assert "hits.*.id" in capsys.readouterr().err


def test_single_systems_can_be_chosen(tmp_path: Path, port: int) -> None:
    systems = {name: system(tmp_path, port, [name]) for name in ("a", "b", "c")}
    code, result = compared(tmp_path, systems, "--only", "c,b", "--rounds", "1")
    assert (code, result["systems"]) == (EXIT_OK, ["b", "c"])
    assert started(tmp_path) == ["b", "c"]


def test_a_choice_of_what_is_not_there_is_refused(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(tmp_path, {"a": system(tmp_path, port, ["a"])}, "--only", "z")[0] == EXIT_USAGE
    assert "'z'" in capsys.readouterr().err


@pytest.mark.parametrize("optional", [True, False])
def test_a_system_whose_variable_is_not_set_is_left_out_only_if_it_is_optional(
    tmp_path: Path, port: int, optional: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PEER_PYTHON", raising=False)
    peer = system(tmp_path, port, ["peer"], optional=optional)
    peer["command"][0] = "{env:PEER_PYTHON}"
    code, result = compared(tmp_path, {"a": system(tmp_path, port, ["a"]), "peer": peer}, rounds=1)
    assert "PEER_PYTHON" in capsys.readouterr().err
    if optional:
        assert (code, result["systems"], list(result["skipped"])) == (EXIT_OK, ["a"], ["peer"])
    else:
        assert (code, result) == (EXIT_USAGE, {})


def test_a_system_may_name_an_interpreter_of_its_own(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEER_PYTHON", sys.executable)
    peer = system(tmp_path, port, ["peer"], optional=True)
    peer["command"][0] = "{env:PEER_PYTHON}"
    assert compared(tmp_path, {"peer": peer}, rounds=1)[0] == EXIT_OK
    assert started(tmp_path) == ["peer"]


def test_a_system_that_answers_nothing_ends_the_comparison(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = {"a": system(tmp_path, port, ["a"]), "b": system(tmp_path, port, ["broken"])}
    assert compared(tmp_path, systems) == (EXIT_USAGE, {})
    assert "'b' answered none" in " ".join(capsys.readouterr().err.split())


def test_a_system_that_leaves_out_a_stage_ends_the_comparison(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = {"a": system(tmp_path, port, ["a"]), "b": system(tmp_path, port, ["hurried"])}
    assert compared(tmp_path, systems, loads=[{"kind": "closed", "clients": 1}]) == (EXIT_USAGE, {})
    assert "'b', 1 clients: answers did without {'rerank': 8}" in " ".join(capsys.readouterr().err.split())


def test_a_comparison_that_is_told_to_end_leaves_no_server(tmp_path: Path, port: int) -> None:
    file = comparison(tmp_path, {"a": system(tmp_path, port, ["a"])}, max_requests=100_000, duration_s=600)
    command = [sys.executable, "-m", "benchmarks.compare", file]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "journal").exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.terminate()
        assert running.wait(120) == EXIT_INTERRUPTED
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_elsewhere_is_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = system(tmp_path, 8000, ["a"]) | {"url": "http://rag.invalid:8000"}
    assert compared(tmp_path, {"a": elsewhere})[0] == EXIT_USAGE
    assert "rag.invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [({"target": None}, "has no target"), ({"lods": []}, "did you mean 'loads'"), ({"systems": {}}, "systems")],
)
def test_a_file_that_can_not_be_run_says_why(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"a": system(tmp_path, 8000, ["a"])}
    assert compare.main([comparison(tmp_path, **{"systems": content, **change})]) == EXIT_USAGE
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks" / "experiments").glob("compare_*.yaml")), ids=lambda p: p.name
)
def test_the_comparisons_of_this_repository_can_be_read(file: Path) -> None:  # fmt: skip
    one = read_comparison(file)
    assert one.name == file.stem
    for each in one.systems.values():
        for part in each.command:
            if part.endswith(".yaml"):
                assert (ROOT / part).is_file()


def test_rounds_alternate_the_order() -> None:
    system = {"command": ["x"], "url": "http://127.0.0.1:1", "target": {"path": "/"}}
    load = {"kind": "closed", "clients": 1}
    content = {"name": "n", "systems": {"a": system, "b": system}, "queries": ["q"], "loads": [load]}
    one = Comparison.model_validate(content)
    assert [one.order(["a", "b"], index) for index in range(4)] == [["a", "b"], ["b", "a"]] * 2


def test_a_ratio_is_of_medians_with_the_extremes_of_the_single_rounds() -> None:
    found = ratio([10.0, 20.0, 60.0], [10.0, 5.0, 20.0])
    assert found is not None
    assert (found.of_medians, found.least, found.greatest) == (2.0, 1.0, 4.0)


@pytest.mark.parametrize("other", [[1.0, None], [0.0, 0.0]])
def test_there_is_no_ratio_to_a_system_that_failed_in_a_round(other: list[float | None]) -> None:
    assert ratio([1.0, 1.0], other) is None


def test_there_is_no_median_where_a_round_has_no_value() -> None:
    assert median_of([1.0, 3.0]) == 2.0
    assert median_of([1.0, None]) is None


def test_agreement_counts_shared_values_and_equal_answers() -> None:
    found = agreement([["1", "2"], ["1", "2"], []], [["2", "1"], ["1", "3"], []])
    assert found.num_queries == 3
    assert found.overlap == pytest.approx((1 + 0.5 + 1) / 3)
    assert found.same_order == pytest.approx(1 / 3)


def test_a_run_in_which_nothing_succeeded_has_no_latency() -> None:
    failed = Sample(0.0, 0.0, 1.0, error_kind="timeout")
    found = measures_of(summarise([failed], Window(0.0, 2.0)))
    assert found == {"requests_per_s": 0.0, "mean_s": None, "p50_s": None, "p90_s": None, "p99_s": None}


def test_latencies_of_a_run_are_those_of_its_summary() -> None:
    samples = [Sample(0.0, 0.0, latency_s) for latency_s in (1.0, 2.0, 6.0)]
    found = measures_of(summarise(samples, Window(0.0, 6.0)))
    assert found == {"requests_per_s": 0.5, "mean_s": 3.0, "p50_s": 2.0, "p90_s": 6.0, "p99_s": 6.0}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("a", [[{"b": 1}, {"b": 2}]]),
        ("a.*", [{"b": 1}, {"b": 2}]),
        ("a.*.b", [1, 2]),
        ("c.d", ["x"]),
    ],
)
def test_values_are_taken_from_lists_and_objects(path: str, values: list[Any]) -> None:
    assert compare.values_at({"a": [{"b": 1}, {"b": 2}], "c": {"d": "x"}}, path) == values


@pytest.mark.parametrize("path", ["z", "c.*", "a.*.z", "a.b"])
def test_a_path_that_an_answer_has_not_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="the answer has no"):
        compare.values_at({"a": [{"b": 1}], "c": {"d": "x"}}, path)


def test_a_comparison_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match="mapping"):
        read_comparison(path)
