"""The two commands, whole: files in, HTTP to a small server, result file out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks import retrieval, run
from benchmarks.experiment import ExperimentError
from benchmarks.retrieval import documents_by_max_score, measure_quality, read_qrels
from tests.http_server import listening_in_thread
from tests.virtual_time import ticking

TIMING = {"stage": "search", "total_s": 0.02, "queue_s": 0.01, "batch_wait_s": 0.0, "compute_s": 0.01, "batch_size": 1}
CHUNKS = {
    "first question": [("d2", 0.9), ("d1", 0.8), ("d1", 0.95)],
    "second question": [("d3", 0.9), ("d1", 0.5)],
}


async def search(request: Request) -> Response:
    body = await request.json()
    results = [{"document_id": document_id, "score": score} for document_id, score in CHUNKS.get(body["query"], [])]
    return JSONResponse({"results": results[: body["k"]], "timings": [TIMING], "request_id": "1"})


async def refuse(request: Request) -> Response:
    return JSONResponse({"error": {"type": "not_found", "message": "no collection 'x'", "request_id": "1"}}, 404)


async def fail(request: Request) -> Response:
    return JSONResponse({"error": {"type": "internal", "message": "broken", "request_id": "1"}}, 500)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    handlers = {"/v1/search": search, "/refuse": refuse, "/fail": fail}
    routes = [Route(path, handler, methods=["POST"]) for path, handler in handlers.items()]
    with listening_in_thread(Starlette(routes=routes)) as address:
        yield address


def experiment(folder: Path, path: str = "/v1/search", **changes: Any) -> str:
    file = folder / "small.yaml"
    content = {
        "name": "small",
        "seed": 3,
        "target": {"path": path, "body": {"query": "{query}", "k": 10}},
        "queries": ["first question", "second question"],
        "loads": [{"kind": "closed", "clients": 2}, {"kind": "open", "rate_per_s": 200}],
        "warmup_s": 0,
        "duration_s": 60,
        "max_requests": 12,
        "repeats": 2,
        **changes,
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(file)


def beir(folder: Path) -> str:
    (folder / "qrels").mkdir()
    queries = [{"_id": "1", "text": "first question"}, {"_id": "2", "text": "second question"}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    judgements = "query-id\tcorpus-id\tscore\n1\td1\t1\n2\td1\t1\n"
    (folder / "qrels" / "test.tsv").write_text(judgements, encoding="utf-8")
    return str(folder)


def test_an_experiment_leaves_one_result_with_everything_needed_to_judge_it(tmp_path: Path, url: str) -> None:
    out = tmp_path / "new folder" / "result.json"
    assert run.main([experiment(tmp_path), "--url", url, "--out", str(out)]) == run.EXIT_OK
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["schema_version"] == 2
    assert result["experiment"]["name"] == "small"
    assert result["seed"] == 3
    assert {"commit", "dirty", "started_at", "command"} <= result.keys()
    assert {"python", "aiohttp", "httpx", "numpy"} <= result["versions"].keys()
    assert result["hardware"]["num_cores"] >= 1
    assert [(load["load"]["kind"], load["repeat"]) for load in result["loads"]] == [
        ("closed", 0),
        ("open", 0),
        ("closed", 1),
        ("open", 1),
    ]
    for load in result["loads"]:
        assert len(load["samples"]) == 12
        assert load["summary"]["num_succeeded"] == 12
        assert load["summary"]["requests_per_s"] > 0
        assert load["stages"][0]["stage"] == "search"
        assert load["stages"][0]["queue_share"] == pytest.approx(0.5)
        assert load["ingest"] is None
        assert load["summary"]["goodput"] is None
    assert [(median["load"]["kind"], median["repeats"]) for median in result["medians"]] == [("closed", 2), ("open", 2)]
    assert "saturation" not in result


def test_a_saturation_search_is_part_of_the_result(tmp_path: Path, url: str) -> None:
    out = tmp_path / "result.json"
    load = {"kind": "saturation", "start_rate_per_s": 100, "max_rate_per_s": 200, "max_probes": 2}
    run.main([experiment(tmp_path, loads=[load], repeats=1), "--url", url, "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    (found,) = result["saturation"]
    assert found["load"]["start_rate_per_s"] == 100
    assert len(found["probes"]) == len(result["loads"]) == 2
    assert result["medians"] == []


def test_the_repeats_of_an_open_load_have_arrivals_of_their_own(tmp_path: Path, url: str) -> None:
    out = tmp_path / "result.json"
    run.main([experiment(tmp_path, loads=[{"kind": "open", "rate_per_s": 200}]), "--url", url, "--out", str(out)])
    loads = json.loads(out.read_text(encoding="utf-8"))["loads"]
    first, second = (sorted(sample["intended_start_s"] for sample in load["samples"]) for load in loads)
    assert first != second


def test_a_benchmark_in_which_nothing_succeeded_fails_but_keeps_its_result(tmp_path: Path, url: str) -> None:
    out = tmp_path / "result.json"
    assert run.main([experiment(tmp_path, "/fail"), "--url", url, "--out", str(out)]) == run.EXIT_NOTHING_SUCCEEDED
    (first, *_) = json.loads(out.read_text(encoding="utf-8"))["loads"]
    assert first["summary"]["errors"] == {"http_5xx": 12}
    assert first["summary"]["latency"] is None


def test_requests_that_the_server_refuses_end_the_benchmark_with_its_message(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([experiment(tmp_path, "/refuse"), "--url", url]) == run.EXIT_USAGE
    assert "no collection 'x'" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told_of_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([experiment(tmp_path), "--url", "http://127.0.0.1:1"]) == run.EXIT_USAGE
    assert "no server at http://127.0.0.1:1" in capsys.readouterr().err


def test_queries_of_the_command_line_take_the_place_of_the_experiments(tmp_path: Path, url: str) -> None:
    out = tmp_path / "result.json"
    queries = f"{beir(tmp_path)}/queries.jsonl"
    assert run.main([experiment(tmp_path), "--url", url, "--queries", queries, "--out", str(out)]) == run.EXIT_OK
    assert json.loads(out.read_text(encoding="utf-8"))["experiment"]["queries"] == queries


def test_a_duration_of_the_command_line_takes_the_place_of_the_experiments(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", ticking(0.01))
    out = tmp_path / "result.json"
    options = ["--url", url, "--duration-s", "0.2", "--out", str(out)]
    assert run.main([experiment(tmp_path, max_requests=100_000, repeats=1), *options]) == run.EXIT_OK
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["experiment"]["duration_s"] == 0.2
    assert all(sample["intended_start_s"] < 0.2 for load in result["loads"] for sample in load["samples"])


def test_repeats_of_the_command_line_take_the_place_of_the_experiments(tmp_path: Path, url: str) -> None:
    out = tmp_path / "result.json"
    assert run.main([experiment(tmp_path), "--url", url, "--repeats", "1", "--out", str(out)]) == run.EXIT_OK
    assert len(json.loads(out.read_text(encoding="utf-8"))["loads"]) == 2


def test_a_duration_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([experiment(tmp_path), "--duration-s", "0"]) == run.EXIT_USAGE
    assert "duration_s" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "retrieval"])
def test_another_machine_is_not_loaded_unless_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    remote = ["--url", "http://rag.invalid:8000"]
    if command == "run":
        code = run.main([experiment(tmp_path), *remote])
    else:
        code = retrieval.main(["--beir", beir(tmp_path), "--collection", "x", *remote])
    assert code == run.EXIT_USAGE
    assert "--allow-remote" in capsys.readouterr().err


def test_retrieval_is_measured_on_documents_by_their_best_chunk(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    command = ["--beir", beir(tmp_path), "--collection", "x", "--url", url, "--out", str(out)]
    assert retrieval.main(command) == run.EXIT_OK
    searches = json.loads(out.read_text(encoding="utf-8"))["searches"]
    assert [one["name"] for one in searches] == ["vector", "text", "hybrid", "hybrid+rerank"]
    first = searches[0]
    # d1 comes first for one question, by its second chunk, and second for the other: 1 and 1 / log2(3); 1 and 1 / 2.
    assert first["measures"]["nDCG@10"] == pytest.approx((1 + 0.63093) / 2, abs=1e-4)
    assert first["measures"]["MRR@10"] == pytest.approx(0.75)
    assert first["measures"]["Recall@5"] == first["measures"]["Recall@100"] == 1.0
    assert first["search"] == {"collection": "x", "mode": "vector", "rerank": False, "rewrite": True, "k": 200}
    assert first["per_query"]["2"]["documents"] == 2
    assert first["num_queries_short_of_documents"] == 2
    assert "fewer than 100 documents" in capsys.readouterr().err


def test_searches_with_and_without_sub_queries_are_compared(tmp_path: Path, url: str) -> None:
    out = tmp_path / "result.json"
    where = ["--beir", beir(tmp_path), "--collection", "x", "--url", url, "--out", str(out)]
    assert retrieval.main([*where, "--searches", "hybrid+rerank", "--sub-queries", "compare"]) == run.EXIT_OK
    searches = json.loads(out.read_text(encoding="utf-8"))["searches"]
    assert [one["name"] for one in searches] == ["hybrid+rerank, no sub-queries", "hybrid+rerank"]
    assert [one["search"]["rewrite"] for one in searches] == [False, True]
    assert all(one["search"]["rerank"] and one["search"]["mode"] == "hybrid" for one in searches)


def test_a_document_has_the_score_of_its_best_chunk_even_if_all_are_negative() -> None:
    chunks: list[dict[str, Any]] = [
        {"document_id": "a", "score": -0.5},
        {"document_id": "a", "score": -0.2},
        {"document_id": 7, "score": 1},
    ]
    assert documents_by_max_score(chunks) == {"a": -0.2, "7": 1.0}


def test_a_query_without_results_counts_as_zero() -> None:
    means, per_query = measure_quality({"1": {"a": 1}, "2": {"a": 1}}, {"1": {"a": 0.5}, "2": {}})
    assert means["nDCG@10"] == means["MRR@10"] == 0.5
    assert per_query["2"]["Recall@100"] == 0.0


def test_no_results_at_all_count_as_zero() -> None:
    assert measure_quality({"1": {"a": 1}}, {"1": {}})[0]["nDCG@10"] == 0.0


def test_judgements_that_are_no_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text("query-id\tcorpus-id\tscore\n1 d1 1\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match="tab-separated"):
        read_qrels(path)
