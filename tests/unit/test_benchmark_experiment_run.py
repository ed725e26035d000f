"""Whole experiments of every kind of load against a small HTTP server."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.experiment import Experiment, ExperimentError
from benchmarks.experiment_run import ExperimentRun, Outcome
from tests.http_server import listening


class Server:
    """Answers queries, refuses all after the `sheds_after`th, takes documents, and counts its calls.

    No query but the first is answered before there were `awaits_batches` of documents.
    """

    def __init__(self, sheds_after: int = 10**6, *, hangs_after: int = 10**6, awaits_batches: int = 0) -> None:
        self.queries: list[str] = []
        self.collections: Counter[str] = Counter()
        self._sheds_after, self._hangs_after = sheds_after, hangs_after
        self._awaits_batches, self._had_batches = awaits_batches, asyncio.Event()
        posts = {"/search": self.search, "/stream": self.stream, "/v1/documents": self.index}
        routes = [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
        self.app = Starlette(routes=[*routes, Route("/v1/stages", self.stages)])

    async def search(self, request: Request) -> Response:
        self.queries.append((await request.json())["query"])
        if len(self.queries) > 1 and self._awaits_batches:
            await self._had_batches.wait()
        if len(self.queries) > self._hangs_after:
            await asyncio.sleep(1.0)
        if len(self.queries) > self._sheds_after:
            return JSONResponse({"error": {"message": "full"}}, 429)
        return JSONResponse({"results": []})

    async def stream(self, request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            for _ in range(3):
                yield "event: token\ndata: {}\n\n"
            yield "event: done\ndata: {}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def index(self, request: Request) -> Response:
        self.collections[(await request.json())["collection"]] += 1
        if self.collections.total() >= self._awaits_batches:
            self._had_batches.set()
        return JSONResponse({"indexed": []})

    async def stages(self, request: Request) -> Response:
        return JSONResponse({"stages": [{"stage": "search", "count": len(self.queries), "seconds_total": 0.0}]})


async def perform(load: dict[str, Any], server: Server | None = None, **changes: Any) -> tuple[Outcome, str]:
    """Run an experiment of one load and return what it gave and what it printed."""
    experiment = Experiment.model_validate(
        {
            "name": "small",
            "target": {"path": "/search", "body": {"query": "{query}"}},
            "queries": ["a question"],
            "loads": [load],
            "warmup_s": 0,
            "duration_s": 600,
            "max_requests": 10,
            **changes,
        }
    )
    console = Console(file=io.StringIO(), width=300)
    async with listening((server or Server()).app) as url:
        outcome = await ExperimentRun(experiment, url, console).run()
    assert isinstance(console.file, io.StringIO)
    return outcome, console.file.getvalue()


async def test_a_ramp_runs_every_step_as_a_load_of_its_own() -> None:
    ramp = {"kind": "ramp", "from_rate_per_s": 100, "to_rate_per_s": 300, "steps": 3, "arrivals": "constant"}
    outcome, _ = await perform(ramp, repeats=2)
    written = [run.to_json() for run in outcome.runs]
    assert [(run["repeat"], run["step"], run["load"]["rate_per_s"]) for run in written] == [
        (0, 0, 100),
        (0, 1, 200),
        (0, 2, 300),
        (1, 0, 100),
        (1, 1, 200),
        (1, 2, 300),
    ]
    assert all(run["load"]["kind"] == "open" and not run["probe"] for run in written)
    assert all(run["summary"]["num_succeeded"] == 10 for run in written)


async def test_a_replay_sends_its_own_queries_at_its_own_times(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"at_s": 0.0, "query": "one"}, {"at_s": 0.4}, {"at_s": 0.2, "query": "two"}, {"at_s": 3600}]
    trace.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    server = Server()
    outcome, _ = await perform({"kind": "replay", "trace": str(trace), "speed": 2}, server, duration_s=1)
    (run,) = outcome.runs
    assert sorted(sample.intended_start_s for sample in run.samples) == [0.0, 0.1, 0.2]
    # The first of them is the one that asks whether there is a server.
    assert server.queries == ["a question", "one", "two", "a question"]
    assert all(sample.latency_s >= sample.end_s - sample.start_s for sample in run.samples)


async def test_a_replay_is_measured_to_its_last_answer_where_the_trace_is_shorter_than_the_window(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at_s": 0}\n{"at_s": 0.1}\n', encoding="utf-8")
    outcome, _ = await perform({"kind": "replay", "trace": str(trace)}, duration_s=3600)
    (run,) = outcome.runs
    assert run.window.end_s == max(sample.end_s for sample in run.samples)


async def test_a_trace_that_ends_within_the_warm_up_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at_s": 4}\n', encoding="utf-8")
    with pytest.raises(ExperimentError, match="within the warm-up"):
        await perform({"kind": "replay", "trace": str(trace), "speed": 2}, warmup_s=3)


async def test_a_saturation_search_keeps_every_probe_and_ends_below_the_rate_that_is_shed() -> None:
    # One request asks whether there is a server, ten are the first probe.
    saturation = {"kind": "saturation", "start_rate_per_s": 100, "max_rate_per_s": 1600, "precision": 1}
    criterion = {"answered_share": 0.001, "slope": 1000}
    outcome, printed = await perform({**saturation, "criterion": criterion}, Server(sheds_after=11))
    (found,) = outcome.saturations
    assert found.max_rate_per_s == 100
    assert [(probe.rate_per_s, probe.passed) for probe in found.probes] == [(100, True), (200, False)]
    assert found.limit.startswith("200 requests/s: ")
    assert found.limit.endswith("100.0% of the requests failed (shed 10)")
    assert [(run.to_json()["probe"], run.to_json()["load"]["rate_per_s"]) for run in outcome.runs] == [
        (True, 100),
        (True, 200),
    ]
    assert "100.0 requests/s sustained" in printed


async def test_a_probe_that_misses_the_slo_has_failed() -> None:
    saturation = {"kind": "saturation", "start_rate_per_s": 100, "max_rate_per_s": 100, "max_probes": 2}
    criterion = {"answered_share": 0.001, "slope": 1000}
    outcome, _ = await perform({**saturation, "criterion": criterion}, slo={"request_p99_s": 1e-6})
    (found,) = outcome.saturations
    assert found.max_rate_per_s == 0
    assert "the SLO was missed: request_p99_s kept by 0.0%" in found.limit


async def test_a_probe_that_is_clearly_too_much_is_stopped_and_its_last_answers_awaited() -> None:
    load = {"kind": "saturation", "start_rate_per_s": 200, "max_rate_per_s": 200, "max_probes": 2, "max_in_flight": 20}
    outcome, printed = await perform(load, Server(hangs_after=1), max_requests=100_000, duration_s=600)
    first = outcome.runs[0]
    assert first.stopped is not None
    assert first.window.end_s < 600
    assert sum(sample.error_kind is None for sample in first.samples) >= 20
    (found,) = outcome.saturations
    assert [probe.passed for probe in found.probes] == [False, False]
    assert "max_in_flight" in found.probes[0].reason
    assert "stopped early" in printed


async def test_the_wait_for_the_last_answers_is_no_part_of_the_clients_cpu_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu_s = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: cpu_s[0])

    class Late(Server):
        async def search(self, request: Request) -> Response:
            response = await super().search(request)
            if len(self.queries) > 1:
                cpu_s[0] = 1e6
            return response

    # The load's first answer takes a second, and the load ends long before.
    outcome, printed = await perform({"kind": "closed", "clients": 1}, Late(hangs_after=1), duration_s=0.1)
    (run,) = outcome.runs
    assert run.samples[0].end_s > run.window.end_s
    assert run.client_cpu_share == 0.0
    assert "The load generator itself used" not in printed


async def test_documents_are_written_beside_a_load_and_counted_apart(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "one"}\n', encoding="utf-8")
    # A second batch is sent once the first one is answered, which so is within the load.
    server = Server(awaits_batches=2)
    ingest = {"documents": str(tmp_path / "corpus.jsonl"), "rate_documents_per_s": 50}
    loads = [{"kind": "open", "rate_per_s": 40}, {"kind": "open", "rate_per_s": 40, "with_ingest": False}]
    outcome, printed = await perform(loads[0], server, ingest=ingest, loads=loads)
    with_ingest, without = outcome.runs
    assert with_ingest.ingest is not None
    assert with_ingest.ingest.errors == {}
    assert server.collections.keys() == {"benchmark_ingest"}
    assert server.collections.total() >= with_ingest.ingest.batches >= 1
    assert with_ingest.summary.num_requests == 10
    assert without.ingest is None
    assert "documents written" in printed


async def test_goodput_of_streams_is_measured_and_told() -> None:
    target = {"path": "/stream", "body": {"query": "{query}"}}
    slo = {"request_p99_s": 60, "ttft_s": 60, "itl_s": 60}
    outcome, printed = await perform({"kind": "closed", "clients": 1}, target=target, stream=True, slo=slo)
    (run,) = outcome.runs
    assert run.summary.goodput is not None
    assert run.summary.goodput.met
    assert run.summary.goodput.good == 10
    assert run.to_json()["summary"]["goodput"]["slo"] == slo
    assert "good requests/s" in printed


async def test_the_servers_own_counters_are_kept_as_the_difference_that_a_load_made() -> None:
    outcome, _ = await perform({"kind": "closed", "clients": 1}, repeats=2)
    expected = [{"stage": "search", "count": 10, "seconds_total": 0.0}]
    assert [run.server_stages for run in outcome.runs] == [expected, expected]


async def test_the_server_is_not_asked_for_its_counters_where_the_experiment_says_so() -> None:
    outcome, _ = await perform({"kind": "closed", "clients": 1}, server_stages=False)
    assert outcome.runs[0].server_stages is None


@pytest.mark.parametrize(
    "changes",
    [
        {"loads": [{"kind": "replay", "trace": "absent.jsonl"}]},
        {"ingest": {"documents": "absent.jsonl", "rate_documents_per_s": 1}},
        {"queries": "absent.jsonl"},
    ],
)
async def test_a_file_that_is_missing_is_told_of_before_anything_is_sent(changes: dict[str, Any]) -> None:
    server = Server()
    with pytest.raises(ExperimentError, match=r"absent\.jsonl"):
        await perform({"kind": "closed", "clients": 1}, server, **changes)
    assert server.queries == []
