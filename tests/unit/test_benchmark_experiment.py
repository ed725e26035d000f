"""What an experiment file may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.experiment import (
    Experiment,
    ExperimentError,
    RampLoad,
    ReplayLoad,
    Slo,
    Target,
    read_experiment,
    read_queries,
)
from benchmarks.ingest_load import read_documents
from benchmarks.trace_file import read_trace

FOLDER = Path(__file__).parents[2] / "benchmarks" / "experiments"
# What compares systems with each other has another layout, read by benchmarks.compare.
FILES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.startswith(("compare_", "peer_", "efficiency")))

SMALLEST: dict[str, Any] = {
    "name": "smallest",
    "target": {"path": "/v1/search", "body": {"query": "{query}"}},
    "queries": ["one question"],
    "loads": [{"kind": "closed", "clients": 1}],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, **changes}), encoding="utf-8")
    return path


def test_there_are_experiment_files_and_those_that_need_no_data_have_every_kind_of_load() -> None:
    assert {"search_closed", "search_open", "answers_closed", "answers_stream", "answers_docs"} <= {
        f.stem for f in FILES
    }
    kinds = {load.kind for path in FILES if path.stem.startswith("docs_") for load in read_experiment(path).loads}
    assert kinds == {"closed", "open", "ramp", "replay", "saturation"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_experiment_parses_and_is_named_like_its_file(path: Path) -> None:
    assert read_experiment(path).name == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_experiments_stream_exactly_where_they_ask_the_server_to(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.target.body is not None
    assert experiment.stream == experiment.target.body.get("stream", False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_experiments_bring_their_queries_or_look_for_them_in_the_folder_of_the_users_data(path: Path) -> None:
    queries = read_experiment(path).queries
    assert not isinstance(queries, str) or queries.startswith("data/") or (FOLDER.parents[1] / queries).is_file()


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("docs_")], ids=lambda path: path.stem)
def test_experiments_on_the_docs_need_no_data_but_the_repositorys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    experiment = read_experiment(path)
    assert experiment.target.body is not None
    assert experiment.target.body["collection"] == "docs"
    assert len(experiment.query_texts()) >= 10
    assert not experiment.ingest or read_documents(Path(experiment.ingest.documents))
    for load in experiment.loads:
        if isinstance(load, ReplayLoad):
            assert experiment.warmup_s < read_trace(Path(load.trace))[-1].at_s / load.speed <= experiment.horizon_s


def test_the_steps_of_a_ramp_are_evenly_spaced_from_end_to_end() -> None:
    ramp = RampLoad(kind="ramp", from_rate_per_s=40, to_rate_per_s=10, steps=4, arrivals="constant", max_in_flight=7)
    loads = ramp.open_loads()
    assert [load.rate_per_s for load in loads] == [40, 30, 20, 10]
    assert {(load.arrivals, load.max_in_flight) for load in loads} == {("constant", 7)}


def test_an_slo_has_the_limits_that_are_not_named_and_may_be_without_some(tmp_path: Path) -> None:
    slo = read_experiment(write(tmp_path, slo={"itl_s": None})).slo
    assert slo == Slo(request_p99_s=3.0, ttft_s=0.3, itl_s=None)
    assert read_experiment(write(tmp_path)).slo is None


def test_the_docs_experiment_brings_its_own_questions() -> None:
    experiment = read_experiment(next(path for path in FILES if path.stem == "answers_docs"))
    assert len(experiment.query_texts()) >= 10


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"warmup": 3}, "warmup", "warmup_s"),
        ({"target": {"path": "/", "bodi": {}}}, "bodi", "body"),
        ({"loads": [{"kind": "closed", "client": 4}]}, "client", "clients"),
        ({"loads": [{"kind": "open", "rate": 4}]}, "rate", "rate_per_s"),
        ({"loads": [{"kind": "ramp", "step": 4}]}, "step", "steps"),
        ({"slo": {"ttft": 1}}, "ttft", "ttft_s"),
        ({"ingest": {"document": "x"}}, "document", "documents"),
    ],
)
def test_an_unknown_key_is_refused_with_its_name_and_the_nearest_valid_one(
    tmp_path: Path, changes: dict[str, Any], key: str, nearest: str
) -> None:
    with pytest.raises(ExperimentError, match=f"unknown key '{key}'; did you mean '{nearest}'"):
        read_experiment(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"loads": []},
        {"loads": [{"kind": "ajar", "clients": 1}]},
        {"loads": [{"kind": "closed", "clients": 0}]},
        {"loads": [{"kind": "open", "rate_per_s": 0}]},
        {"loads": [{"kind": "open", "rate_per_s": float("inf")}]},
        {"loads": [{"kind": "ramp", "from_rate_per_s": 1, "to_rate_per_s": 2, "steps": 1}]},
        {"loads": [{"kind": "replay", "trace": "x", "speed": 0}]},
        {"loads": [{"kind": "saturation", "start_rate_per_s": 1, "max_rate_per_s": 2, "precision": 0}]},
        {"slo": {"request_p99_s": None, "ttft_s": None, "itl_s": None}},
        {"ingest": {"documents": "x", "rate_documents_per_s": 0}},
        {"duration_s": 0},
        {"repeats": 0},
        {"queries": []},
        {"name": "not/a/file"},
        {"target": {"path": "v1/search"}},
    ],
)
def test_values_that_make_no_benchmark_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match=r"experiment\.yaml: "):
        read_experiment(write(tmp_path, **changes))


def test_a_body_that_would_be_the_same_for_every_query_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"\{query\}"):
        read_experiment(write(tmp_path, target={"path": "/", "body": {"query": "{question}"}}))


def test_an_experiment_can_not_be_changed_once_read(tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 2  # type: ignore[misc]


def test_overrides_take_the_place_of_the_files_own_keys(tmp_path: Path) -> None:
    assert read_experiment(write(tmp_path), {"queries": ["another"]}).query_texts() == ("another",)


def test_the_query_is_put_wherever_the_body_names_it_and_never_read_as_json() -> None:
    target = Target(path="/", body={"messages": [{"role": "user", "content": "Q: {query}"}], "n": 1, "also": "{query}"})
    query = 'say "{}" \\ ü'
    assert json.loads(target.encode(query)) == {
        "messages": [{"role": "user", "content": f"Q: {query}"}],
        "n": 1,
        "also": query,
    }


def test_queries_are_read_from_a_beir_file_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(
        '{"_id": "b", "text": "second id first"}\n\n{"_id": 1, "text": "x", "metadata": {}}\n', encoding="utf-8"
    )
    assert read_queries(path) == {"b": "second id first", "1": "x"}
    assert Experiment.model_validate({**SMALLEST, "queries": str(path)}).query_texts() == ("second id first", "x")


@pytest.mark.parametrize("line", ["not json", '{"_id": "1"}', '["1", "text"]'])
def test_a_line_that_is_no_query_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(f'{{"_id": "1", "text": "fine"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ExperimentError, match="line 2"):
        read_queries(path)


def test_a_missing_query_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"absent\.jsonl.*--queries"):
        read_queries(tmp_path / "absent.jsonl")
