"""`raglane stages`: the latency report as a user or a script sees it, against a stub server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.wire import to_json
from serve_app.cli.exits import ExitCode
from serve_app.cli.main import main
from serve_app.node_metrics import Snapshot
from serve_app.stage_figures import Bottleneck, NodeState
from serve_app.stage_report import build_report
from tests.stub_server import StubServer, error_reply, json_reply


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    monkeypatch.setenv("RAGLANE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    with StubServer() as server:
        monkeypatch.setenv("RAGLANE_URL", server.url)
        yield server


def report() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(to_json(build_report(Snapshot(0.0))))
    search = next(stage for stage in whole["stages"] if stage["stage"] == "search")
    search |= {
        "count": 1234,
        "rate_per_s": 5.0,
        "mean_s": 0.0625,
        "p99_s": 0.25,
        "queue_share": 0.75,
        "utilisation": 0.5,
    }
    branch = {"count": 617, "seconds_total": 1.0, "rate_per_s": 2.5, "mean_s": 0.0312}
    percentiles = {"p50_s": 0.01, "p90_s": 0.02, "p99_s": 0.04}
    search["branches"] = [{"branch": name, **branch, **percentiles} for name in ("text", "vector")]
    whole["nodes"] = [asdict(NodeState("n", "10.0.0.7", 8080, "connection refused", None))]
    whole["bottleneck"] = asdict(Bottleneck("search", "Retriever", True, 0.95, 3.2, "it is busy; add one", "Retriever"))
    return whole


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["stages", *arguments])
    return int(ended.value.code or 0)


def test_stages_branches_the_bottleneck_and_nodes_that_are_silent_are_shown(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.routes["GET /v1/stages?window_s=0"] = lambda _: json_reply(report())
    assert run() == 0
    shown = capsys.readouterr().out
    for text in ("search", "1234", "62.5", "250.0", "75%", "50%", "text", "vector", "31.2", "add one"):
        assert text in shown
    assert "10.0.0.7 did not answer: connection refused" in shown


def test_a_window_is_asked_of_the_server(stub: StubServer) -> None:
    stub.routes["GET /v1/stages?window_s=2.5"] = lambda _: json_reply(report())
    assert run("--window-s", "2.5") == 0


def test_scripts_get_the_report_as_it_is(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    stub.routes["GET /v1/stages?window_s=0"] = lambda _: json_reply(report())
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out) == report()


def test_watching_goes_on_until_the_server_is_gone(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    replies = iter([json_reply(report()), json_reply(report()), error_reply(503, "gone")])
    stub.routes["GET /v1/stages?window_s=5"] = lambda _: next(replies)
    assert run("--watch") == ExitCode.NOT_READY
    assert len(stub.requests) == 3
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--watch", "--json"), ("--window-s", "61"), ("--window-s", "-1")])
def test_what_makes_no_sense_is_refused(stub: StubServer, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) != 0
    assert stub.requests == []
