"""The efficiency benchmark, whole, over a small server and small engines; and what the profiles of instruments say."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import efficiency
from benchmarks.baselines.engine_alone import EngineAlone, cut_by_tokens, pair_of
from benchmarks.efficiency_figures import efficiency as efficiency_of
from benchmarks.efficiency_plan import read_plan, with_candidates
from benchmarks.experiment import ExperimentError
from benchmarks.run import EXIT_OK, EXIT_USAGE
from deployments.contracts import Call, Candidate, RerankRequest
from deployments.errors import InputTooLong, StageError
from deployments.parsing import ParsingConfig, parse_question
from deployments.reranker import Pair, Reranker, RerankerConfig
from deployments.store import StoreConfig
from serve_app.config import AppConfig
from serve_app.serve_file import check_serve_document, load_serve_file
from tests.ports import free_port
from tests.virtual_time import ticking

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "benchmarks" / "profiles"
PLAN = ROOT / "benchmarks" / "experiments" / "efficiency.yaml"
QUERIES = ["first question", "second question", "third question"]

# Finds as many passages as it is asked for, and notes every body and what its profile says of reranking.
SERVER = """
import json, sys, yaml
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, profile, journal, manner = sys.argv[1:]
with open(profile) as file:
    candidates = yaml.safe_load(file)["applications"][0]["args"]["lane"]["rerank_candidates"]

class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with open(journal, "a") as file:
            file.write(json.dumps({"path": self.path, "candidates": candidates, **body}) + "\\n")
        found = [{"title": "T", "text": f"passage {n}"} for n in range(body.get("k", 0))] if manner != "empty" else []
        degraded = ["rerank"] if manner == "degraded" and body.get("rerank") else []
        reply = json.dumps({"results": found, "degraded": degraded}).encode()
        self.send_response(500 if manner == "broken" and body.get("rerank") else 200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments):
        pass

ThreadingHTTPServer(("127.0.0.1", int(port)), Answers).serve_forever()
"""


class Counting:
    """An engine whose items are their own lengths; what it is given to run together is kept."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def prepare(self, items: Sequence[int]) -> list[tuple[int, int] | StageError]:
        return [(item, item) if item < 1000 else InputTooLong("too long") for item in items]

    def run(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        return list(batch)


class Recording:
    """A cross-encoder that keeps the pairs that it reads."""

    pairs: ClassVar[list[Pair]] = []

    def __init__(self, config: RerankerConfig) -> None:
        self.pairs.clear()

    def prepare(self, items: Sequence[Pair]) -> list[tuple[Pair, int] | StageError]:
        self.pairs.extend(items)
        return [(item, 1) for item in items]

    def run(self, batch: Sequence[Pair]) -> list[float]:
        return [0.0] * len(batch)


def plan_file(folder: Path, manner: str = "well", reranker: str = "tests.engines:SleepyScorer", **changes: Any) -> str:
    (folder / "server.py").write_text(SERVER, encoding="utf-8")
    (folder / "profile.yaml").write_text(
        yaml.safe_dump(
            {
                "applications": [
                    {
                        "args": {
                            "embedder": {"engine": "tests.engines:WordHashEncoder"},
                            "reranker": {"method": "cross_encoder", "engine": reranker},
                        }
                    }
                ]
            }
        )
    )
    port = free_port()
    load = {"clients": [1, 2], "max_batch_tokens": [4, 64], "num_queries": 2, "warmup_s": 0, "duration_s": 0.2}
    content = {
        "name": "small",
        "profile": str(folder / "profile.yaml"),
        "candidates": 3,
        "server": {
            "command": ["python", str(folder / "server.py"), str(port), "{profile}", str(folder / "journal"), manner],
            "url": f"http://127.0.0.1:{port}",
        },
        "queries": QUERIES,
        "stages": {
            "rerank": {
                "target": {"path": "/v1/search", "body": {"query": "{query}", "k": 1, "rerank": True}},
                **load,
                "goal": 1e-9,
            },
            "embed": {"target": {"path": "/v1/embeddings", "body": {"input": "{query}"}}, **load},
        },
        "rounds": 2,
        "engine_s": 0.01,
        "start_timeout_s": 30,
        **changes,
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a whole run has left its files."""
    folder = tmp_path_factory.mktemp("efficiency")
    with pytest.MonkeyPatch.context() as patch:
        # There are answers within each load's duration, however slow the machine is.
        patch.setattr(time, "perf_counter", ticking(0.01))
        assert efficiency.main([plan_file(folder), "--out", str(folder / "result.json")]) == EXIT_OK
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[dict[str, Any]]:
    """The bodies that the server got, in their order."""
    return [json.loads(line) for line in (folder / "journal").read_text(encoding="utf-8").splitlines()]


def test_server_and_engines_take_turns_and_every_other_round_begins_with_the_engines(result: dict[str, Any]) -> None:
    turns = [(run["round_index"], run["side"]) for run in result["runs"]]
    assert list(dict.fromkeys(turns)) == [(0, "server"), (0, "engine"), (1, "engine"), (1, "server")]


def test_every_load_and_every_batch_size_is_measured_in_each_round(result: dict[str, Any]) -> None:
    for stage in ("rerank", "embed"):
        for side, settings in (("server", [1, 2]), ("engine", [4, 64])):
            own = [run for run in result["runs"] if (run["stage"], run["side"]) == (stage, side)]
            assert [run["setting"] for run in own] == settings * 2
            assert all(run["rate_per_s"] > 0 for run in own)


def test_the_engines_get_the_candidates_that_the_server_would_rerank(
    result: dict[str, Any], asked: list[dict[str, Any]]
) -> None:
    searched = [body for body in asked if body["path"] == "/v1/search" and not body["rerank"]]
    assert [body["k"] for body in searched] == [3, 3]
    reranked = [body for body in asked if body["path"] == "/v1/search" and body["rerank"]]
    assert {body["k"] for body in reranked} == {1}
    assert {body["query"] for body in reranked} == {body["query"] for body in searched}
    rerank, embed = result["stages"]["rerank"], result["stages"]["embed"]
    assert (rerank["num_items"], rerank["items_per_request"]) == (6, 3.0)
    assert (embed["num_items"], embed["items_per_request"]) == (2, 1.0)


def test_the_server_runs_with_the_number_of_candidates_that_was_asked_for(asked: list[dict[str, Any]]) -> None:
    assert {body["candidates"] for body in asked} == {3}


def test_the_efficiency_is_told_with_its_goal(result: dict[str, Any]) -> None:
    rerank = result["stages"]["rerank"]
    assert rerank["ratio"]["of_medians"] == pytest.approx(rerank["server_items_per_s"] / rerank["engine_items_per_s"])
    assert rerank["goal_met"] is True
    assert result["stages"]["embed"]["goal_met"] is None
    assert {"commit", "hardware", "versions", "command", "started_at"} <= result.keys()


def test_the_table_marks_a_best_that_lies_at_the_edge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert efficiency.main([plan_file(tmp_path, rounds=1), "--out", str(tmp_path / "result.json")]) == EXIT_OK
    best = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["stages"]["rerank"]
    printed = " ".join(capsys.readouterr().err.split())
    assert f"({best['best_clients']}*)" in printed
    assert "* the least or the greatest that was tried" in printed


@pytest.mark.parametrize(
    ("manner", "complaint"),
    [
        ("degraded", "did without {'rerank'"),
        ("broken", "requests failed"),
        ("empty", "nothing to rerank"),
    ],
)
def test_a_server_that_does_not_do_the_work_is_not_measured(
    tmp_path: Path, manner: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert efficiency.main([plan_file(tmp_path, manner), "--out", str(tmp_path / "out.json")]) == EXIT_USAGE
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.json").exists()


def test_an_engine_that_fails_is_told_of_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_file(tmp_path, reranker="tests.engines:NoSuchScorer")
    assert efficiency.main([plan, "--out", str(tmp_path / "out.json")]) == EXIT_USAGE
    assert "has no 'NoSuchScorer'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"candidate": 3}, "did you mean 'candidates'"),
        ({"stages": {}}, "stages"),
        ({"queries": "no/such/file.jsonl"}, "no/such/file.jsonl"),
        ({"profile": "no/such/profile.yaml"}, "no/such/profile.yaml"),
    ],
)
def test_a_plan_that_can_not_be_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert efficiency.main([plan_file(tmp_path, **changes)]) == EXIT_USAGE
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_both_sides_count_at_their_best() -> None:
    server = {8: [1.0, 3.0, 2.0], 16: [4.0, 2.0, 3.0]}
    engine = {512: [10.0, 90.0, 20.0], 1024: [40.0, 40.0, 30.0]}
    found = efficiency_of(server, engine, items_per_request=10)
    assert (found.best_clients, found.best_max_batch_tokens) == (16, 1024)
    assert (found.server_items_per_s, found.engine_items_per_s) == (30.0, 40.0)
    assert found.ratio.of_medians == 0.75
    assert (found.ratio.least, found.ratio.greatest) == (0.5, 1.0)


def test_a_best_at_the_edge_of_what_was_tried_is_told_of() -> None:
    rising, falling = {8: [1.0], 16: [2.0], 32: [3.0]}, {8: [3.0], 16: [2.0], 32: [1.0]}
    peaked, alone = {8: [1.0], 16: [3.0], 32: [2.0]}, {64: [1.0]}
    sides = ((rising, peaked), (peaked, falling), (alone, peaked))
    found = [efficiency_of(server, engine, items_per_request=1) for server, engine in sides]
    assert [one.best_clients_at_edge for one in found] == [True, False, True]
    assert [one.best_max_batch_tokens_at_edge for one in found] == [False, True, False]


def test_an_engine_that_did_nothing_is_nothing_to_compare_with() -> None:
    with pytest.raises(ExperimentError, match="nothing to compare with"):
        efficiency_of({8: [1.0]}, {512: [0.0]}, items_per_request=10)


@given(lengths=st.lists(st.integers(1, 40)).map(sorted), budget=st.integers(1, 100))
def test_batches_hold_all_items_in_order_and_as_many_as_the_budget_allows(lengths: list[int], budget: int) -> None:
    batches = [lengths[cut] for cut in cut_by_tokens(lengths, budget)]
    assert [length for batch in batches for length in batch] == lengths
    assert all(len(batch) * max(batch) <= budget or len(batch) == 1 for batch in batches)
    assert all((len(batch) + 1) * following[0] > budget for batch, following in pairwise(batches))


def test_an_engine_alone_gets_every_item_in_sorted_batches_and_warms_up_first() -> None:
    engine = Counting()
    rate = EngineAlone(engine, [5, 1, 3, 3]).measure(6, at_least_s=0.0)
    assert engine.batches == [[1, 3], [3], [5]] * 2
    assert (rate.max_batch_tokens, rate.num_batches) == (6, 3)
    assert rate.padding_share == pytest.approx(1 - 12 / 14)
    assert rate.items_per_s > 0


def test_an_item_that_the_engine_does_not_take_ends_the_measurement() -> None:
    with pytest.raises(InputTooLong):
        EngineAlone(Counting(), [5, 2000])


async def test_an_engine_alone_reads_what_the_rerank_stage_gives_to_it(tmp_path: Path) -> None:
    question = "  What\tpulls the tides of  the sea? "
    candidates = [{"title": "Tides", "text": "The moon does."}, {"title": "", "text": "So does the sun."}]
    config = RerankerConfig(method="cross_encoder", engine=f"{__name__}:Recording")
    stage = Reranker(config, StoreConfig(uri=str(tmp_path)), embedder=None)
    asked = RerankRequest(
        parse_question(question).text,
        tuple(Candidate(one["text"], str(number), one["title"]) for number, one in enumerate(candidates)),
        "docs",
        None,
    )
    await stage.rerank([Call(asked, 60.0)])
    assert [pair_of({"query": question, **one}, ParsingConfig()) for one in candidates] == Recording.pairs


class TestFiles:
    def test_the_plan_can_be_read_and_names_files_that_are_there(self) -> None:
        plan = read_plan(PLAN)
        assert (ROOT / plan.profile).is_file()
        assert set(plan.stages) == {"rerank", "embed"}
        assert all(len(tried) > 2 for load in plan.stages.values() for tried in (load.clients, load.max_batch_tokens))
        assert plan.server_with(Path("/there/copy.yaml")).command[3] == "/there/copy.yaml"

    def test_raglane_takes_the_profile_with_another_number_of_candidates(self) -> None:
        document = yaml.safe_load((PROFILES / "efficiency.yaml").read_text(encoding="utf-8"))
        changed = with_candidates(document, 33)
        check_serve_document(changed)
        config = AppConfig.model_validate(changed["applications"][0]["args"])
        assert config.lane.rerank_candidates == 33
        assert config.lane.embedding_cache.max_bytes == 0
        assert with_candidates(changed, config.lane.rerank_candidates) == changed
        assert document != changed

    def test_no_answer_is_given_up_before_the_client_gives_up(self) -> None:
        document = yaml.safe_load((PROFILES / "efficiency.yaml").read_text(encoding="utf-8"))
        lane = AppConfig.model_validate(document["applications"][0]["args"]).lane
        patience_s = min(lane.rerank_timeout_s, lane.default_timeout_s * lane.stage_deadline_share)
        assert patience_s >= read_plan(PLAN).timeout_s

    @pytest.mark.parametrize(
        ("name", "section", "instruments"),
        [
            ("instant_uncounted", "telemetry", {"enabled": False}),
            ("instant_traced", "tracing", {"exporter": "benchmarks.span_sink:SpanSink", "sample_ratio": 1}),
        ],
    )
    def test_the_instruments_are_all_that_their_profiles_differ_in(
        self, name: str, section: str, instruments: dict[str, Any]
    ) -> None:
        load_serve_file(PROFILES / f"{name}.yaml")
        document = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
        assert document["applications"][0]["args"].pop(section) == instruments
        assert document == yaml.safe_load((PROFILES / "instant.yaml").read_text(encoding="utf-8"))
