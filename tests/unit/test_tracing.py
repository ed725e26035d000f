"""OpenTelemetry spans: the tree of a request, whose trace it continues, where it goes, and that no request suffers."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError
from starlette.datastructures import Headers

from deployments.errors import ConfigError, EngineFailed
from deployments.tally import RequestOutcome
from serve_app.api.app import create_api
from serve_app.api.observation import RequestRecord
from serve_app.api.services import HttpConfig
from serve_app.config import AppConfig
from serve_app.spans import RequestSpans
from serve_app.trace import StageRow, Trace
from serve_app.tracing import TracingConfig, build_request_spans
from tests.api import FakeServices, RawRequest, events_of

ROOT = Path(__file__).parents[2]
QUESTION = {"question": "What pulls the tides?"}
SEARCH = {"query": "What pulls the tides?"}

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"
NOT_SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"

_built: list[InMemorySpanExporter] = []


def in_memory() -> SpanExporter:
    """What a config names as `module:factory`."""
    _built.append(InMemorySpanExporter())
    return _built[-1]


NO_EXPORTER = "a string"


def no_exporter() -> str:
    return NO_EXPORTER


class FailingExporter(SpanExporter):
    """Fails as the interface has it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


class RaisingExporter(SpanExporter):
    """Fails as the interface does not have it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise ConnectionError("the collector is gone")


class SlowExporter(SpanExporter):
    """Exports nothing until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.num_exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        assert self.let_go.wait(60)
        self.num_exported += len(spans)
        return SpanExportResult.SUCCESS


class Room:
    """The HTTP room over the fakes, with tracing on."""

    def __init__(self, fakes: FakeServices, spans: RequestSpans) -> None:
        self._spans = spans
        self.api = create_api(fakes.services(), observers=(spans,))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.api), base_url="http://raglane")

    def finished(self) -> list[ReadableSpan]:
        """All spans, after which there are no more."""
        self._spans.shutdown()
        return list(_built[-1].get_finished_spans())

    def request_and_stages(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """The span of the only request, and the others."""
        spans = self.finished()
        (request,) = [span for span in spans if span.kind is SpanKind.SERVER]
        return request, [span for span in spans if span is not request]


def traced(fakes: FakeServices, **config: Any) -> Room:
    spans = build_request_spans(
        TracingConfig(exporter=f"{__name__}:in_memory", **config), {"service.instance.id": "r1"}
    )
    assert spans is not None
    return Room(fakes, spans)


@pytest.fixture
def room(fakes: FakeServices) -> Room:
    return traced(fakes)


def a_record(trace: Trace | None = None, outcome: RequestOutcome = "ok") -> RequestRecord:
    """Two seconds of a request for an answer."""
    return RequestRecord(
        endpoint="/v1/answers",
        path="/v1/answers",
        method="POST",
        status=200,
        outcome=outcome,
        request_id="r",
        started_at_ns=1_000_000_000_000,
        started_s=50.0,
        seconds=2.0,
        trace=trace,
        headers=Headers({}),
    )


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def times_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def trace_id_of(span: ReadableSpan) -> str:
    return f"{span.context.trace_id:032x}"


class TestTree:
    async def test_a_request_is_a_server_span_named_by_method_and_route(self, room: Room) -> None:
        await room.client.post("/v1/search", json=SEARCH, headers={"x-request-id": "mine"})
        request, _ = room.request_and_stages()
        assert request.name == "POST /v1/search"
        assert request.parent is None
        assert request.status.status_code is StatusCode.UNSET
        assert attributes_of(request) == {
            "http.request.method": "POST",
            "http.route": "/v1/search",
            "http.response.status_code": 200,
            "url.path": "/v1/search",
            "raglane.request_id": "mine",
            "raglane.outcome": "ok",
        }

    async def test_every_timing_of_the_response_is_a_span_below_that_of_the_request(self, room: Room) -> None:
        response = await room.client.post("/v1/answers", json=QUESTION)
        request, stages = room.request_and_stages()
        timings = response.json()["timings"]
        assert [span.name for span in stages] == [f"{row['stage']} {row['branch']}".strip() for row in timings]
        assert "search text" in {span.name for span in stages}
        for span, row in zip(stages, timings, strict=True):
            assert span.parent is not None
            assert span.parent.span_id == request.context.span_id
            assert span.context.trace_id == request.context.trace_id
            start_ns, end_ns = times_of(span)
            assert end_ns - start_ns == pytest.approx(row["total_s"] * 1e9, abs=2)
            told = ("stage", "branch", "queue_s", "batch_wait_s", "compute_s", "batch_size")
            assert attributes_of(span) == {f"raglane.{name}": row[name] for name in told}
        assert len({span.context.span_id for span in (request, *stages)}) == len(stages) + 1

    async def test_the_stages_lie_within_their_request(self, room: Room) -> None:
        await room.client.post("/v1/answers", json=QUESTION)
        request, stages = room.request_and_stages()
        start_ns, end_ns = times_of(request)
        assert stages
        for span in stages:
            stage_start_ns, stage_end_ns = times_of(span)
            assert start_ns <= stage_start_ns <= stage_end_ns <= end_ns

    def test_a_stage_begins_where_its_trace_says_counted_from_the_head_of_the_request(self) -> None:
        exporter = InMemorySpanExporter()
        spans = RequestSpans(exporter, 1.0, {})
        row = StageRow("embed", "", 0.5, 1.0, 0.0, 0.0, 1.0, 1)
        spans(a_record(Trace(started_at=50.25, rows=[row])))
        spans.shutdown()
        request, stage = exporter.get_finished_spans()
        assert times_of(request) == (1_000_000_000_000, 1_002_000_000_000)
        assert times_of(stage) == (1_000_750_000_000, 1_001_750_000_000)

    async def test_a_streamed_answer_is_covered_to_its_end(self, room: Room) -> None:
        response = await room.client.post("/v1/answers", json=QUESTION | {"stream": True})
        assert events_of(response.text)[-1][0] == "done"
        request, stages = room.request_and_stages()
        (generate,) = [span for span in stages if span.name == "generate"]
        assert times_of(generate)[1] <= times_of(request)[1]
        assert attributes_of(request)["raglane.outcome"] == "ok"

    async def test_stages_that_were_left_out_are_named(self, fakes: FakeServices, room: Room) -> None:
        fakes.reranker.faults.error = EngineFailed("no reranker today")
        await room.client.post("/v1/search", json=SEARCH)
        request, stages = room.request_and_stages()
        assert attributes_of(request)["raglane.degraded"] == ("rerank",)
        assert attributes_of(request)["raglane.outcome"] == "degraded"
        assert request.status.status_code is StatusCode.UNSET
        assert "rerank" not in {span.name for span in stages}

    async def test_spans_say_which_process_of_which_service_made_them(self, fakes: FakeServices) -> None:
        room = traced(fakes, service_name="library")
        await room.client.get("/v1/models")
        request, _ = room.request_and_stages()
        resource = request.resource.attributes
        assert resource["service.name"] == "library"
        assert resource["service.instance.id"] == "r1"
        assert resource["service.version"]


class TestRefusalsAndFailures:
    async def test_what_is_asked_for_under_no_route_has_a_span_without_route_and_stages(self, room: Room) -> None:
        await room.client.get("/v1/anything/at/all")
        (request,) = room.finished()
        assert request.name == "GET"
        assert "http.route" not in attributes_of(request)
        assert attributes_of(request)["http.response.status_code"] == 404
        assert request.status.status_code is StatusCode.UNSET

    async def test_what_a_full_room_refuses_has_a_span_without_stages(self) -> None:
        fakes = FakeServices(HttpConfig(max_concurrent_requests=1))
        await fakes.fill()
        room = traced(fakes)
        fakes.generator.faults.delay_s = 30
        inside = RawRequest(room.api, "/v1/answers", QUESTION)
        await fakes.generator.begun.wait()
        assert (await room.client.post("/v1/search", json=SEARCH)).status_code == 429
        (request,) = room.finished()
        assert request.name == "POST /v1/search"
        assert attributes_of(request)["raglane.outcome"] == "shed"
        assert attributes_of(request)["http.response.status_code"] == 429
        inside.hang_up()
        await asyncio.wait_for(inside.served, 60)

    async def test_an_error_of_the_server_marks_the_span_of_the_request(self, fakes: FakeServices, room: Room) -> None:
        fakes.embedder.faults.error = ValueError("unforeseen")
        assert (await room.client.post("/v1/embeddings", json={"input": "tides"})).status_code == 500
        (request,) = room.finished()
        assert request.status.status_code is StatusCode.ERROR
        assert attributes_of(request)["error.type"] == "server_error"

    @pytest.mark.parametrize(
        ("outcome", "status"),
        [
            ("ok", StatusCode.UNSET),
            ("degraded", StatusCode.UNSET),
            ("shed", StatusCode.UNSET),
            ("client_error", StatusCode.UNSET),
            ("disconnected", StatusCode.UNSET),
            ("server_error", StatusCode.ERROR),
            ("deadline", StatusCode.ERROR),
        ],
    )
    def test_only_failures_of_the_server_are_errors(self, outcome: RequestOutcome, status: StatusCode) -> None:
        exporter = InMemorySpanExporter()
        spans = RequestSpans(exporter, 1.0, {})
        spans(a_record(outcome=outcome))
        spans.shutdown()
        (request,) = exporter.get_finished_spans()
        assert request.status.status_code is status

    def test_a_response_that_never_began_has_no_status_code(self) -> None:
        exporter = InMemorySpanExporter()
        spans = RequestSpans(exporter, 1.0, {})
        spans(replace(a_record(outcome="disconnected"), status=None))
        spans.shutdown()
        (request,) = exporter.get_finished_spans()
        assert "http.response.status_code" not in attributes_of(request)

    async def test_invented_methods_make_no_new_names(self, room: Room) -> None:
        await room.client.request("BREW", "/v1/coffee")
        (request,) = room.finished()
        assert request.name == "HTTP"
        assert attributes_of(request)["http.request.method"] == "_OTHER"

    async def test_health_checks_have_no_spans(self, room: Room) -> None:
        await room.client.get("/health/live")
        assert room.finished() == []


class TestWhoseTrace:
    async def test_a_request_continues_the_trace_of_its_client(self, room: Room) -> None:
        headers = {"traceparent": SAMPLED, "tracestate": "vendor=opaque"}
        await room.client.post("/v1/search", json=SEARCH, headers=headers)
        request, stages = room.request_and_stages()
        assert request.parent is not None
        assert f"{request.parent.span_id:016x}" == SPAN_ID
        assert {trace_id_of(span) for span in (request, *stages)} == {TRACE_ID}
        assert request.context.trace_state.to_header() == "vendor=opaque"

    @pytest.mark.parametrize(
        "traceparent",
        [
            "",
            "nonsense",
            f"00-{TRACE_ID}-{SPAN_ID}",
            f"00-{'0' * 32}-{SPAN_ID}-01",
            f"00-{TRACE_ID}-{'0' * 16}-01",
            f"ff-{TRACE_ID}-{SPAN_ID}-01",
            f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        ],
    )
    async def test_an_invalid_traceparent_is_none(self, room: Room, traceparent: str) -> None:
        await room.client.post("/v1/search", json=SEARCH, headers={"traceparent": traceparent})
        request, _ = room.request_and_stages()
        assert request.parent is None
        assert trace_id_of(request) != TRACE_ID

    async def test_requests_without_a_trace_begin_one_each(self, room: Room) -> None:
        for _ in range(3):
            await room.client.get("/v1/models")
        assert len({trace_id_of(span) for span in room.finished()}) == 3

    @pytest.mark.parametrize(
        ("sample_ratio", "traceparent", "num_requests"),
        [
            (1.0, NOT_SAMPLED, 0),
            (0.0, SAMPLED, 1),
            (0.0, "", 0),
            (1.0, "", 1),
        ],
    )
    async def test_the_clients_choice_comes_before_the_ratio(
        self, fakes: FakeServices, sample_ratio: float, traceparent: str, num_requests: int
    ) -> None:
        room = traced(fakes, sample_ratio=sample_ratio)
        response = await room.client.post("/v1/search", json=SEARCH, headers={"traceparent": traceparent})
        assert response.status_code == 200
        spans = room.finished()
        assert len([span for span in spans if span.kind is SpanKind.SERVER]) == num_requests
        assert bool(spans) is bool(num_requests)


class TestNoRequestSuffers:
    @pytest.mark.parametrize("exporter", ["FailingExporter", "RaisingExporter"])
    async def test_a_failing_exporter_fails_no_request(self, fakes: FakeServices, exporter: str) -> None:
        spans = build_request_spans(TracingConfig(exporter=f"{__name__}:{exporter}"), {})
        assert spans is not None
        room = Room(fakes, spans)
        assert (await room.client.post("/v1/search", json=SEARCH)).status_code == 200
        spans.shutdown()
        assert (await room.client.post("/v1/search", json=SEARCH)).status_code == 200

    def test_an_error_in_making_spans_is_logged_once_and_raised_never(self, caplog: pytest.LogCaptureFixture) -> None:
        exporter = InMemorySpanExporter()
        spans = RequestSpans(exporter, 1.0, {})
        unusable = replace(a_record(), started_at_ns=None)  # type: ignore[arg-type]
        with caplog.at_level(logging.ERROR, "serve_app.spans"):
            spans(unusable)
            spans(unusable)
        assert len(caplog.records) == 1
        spans(a_record())
        spans.shutdown()
        assert len(exporter.get_finished_spans()) == 1

    def test_spans_that_the_exporter_is_too_slow_for_are_dropped(self) -> None:
        exporter = SlowExporter()
        spans = RequestSpans(exporter, 1.0, {})
        num_requests = 10_000
        for _ in range(num_requests):
            spans(a_record())
        assert exporter.begun.wait(60)
        exporter.let_go.set()
        spans.shutdown()
        assert 0 < exporter.num_exported < num_requests


class Collector:
    """An OTLP/HTTP collector that keeps the paths and bodies of what it is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.received.append((self.path, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


class TestWhereSpansGo:
    def export_one(self, config: TracingConfig) -> None:
        spans = build_request_spans(config, {})
        assert spans is not None
        spans(a_record())
        spans.shutdown()

    def names_in(self, body: bytes) -> list[str]:
        sent = ExportTraceServiceRequest.FromString(body)
        return [span.name for resource in sent.resource_spans for scope in resource.scope_spans for span in scope.spans]

    def test_otlp_reaches_the_endpoint_of_the_config(self, collector: Collector) -> None:
        self.export_one(TracingConfig(exporter="otlp", endpoint=f"{collector.url}/ingest"))
        ((path, body),) = collector.received
        assert path == "/ingest"
        assert self.names_in(body) == ["POST /v1/answers"]

    def test_otlp_without_an_endpoint_goes_where_the_standard_variables_say(
        self, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        self.export_one(TracingConfig(exporter="otlp"))
        ((path, body),) = collector.received
        assert path == "/v1/traces"
        assert self.names_in(body) == ["POST /v1/answers"]

    def test_the_console_gets_a_line_of_json_for_each_span(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.export_one(TracingConfig(exporter="console"))
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line)["name"] == "POST /v1/answers"

    def test_what_waits_when_the_process_ends_is_exported(self) -> None:
        script = """
from starlette.datastructures import Headers
from serve_app.api.observation import RequestRecord
from serve_app.tracing import TracingConfig, build_request_spans
spans = build_request_spans(TracingConfig(exporter="console"), {})
spans(RequestRecord("/v1/search", "/v1/search", "POST", 200, "ok", "r", 1, 0.0, 1.0, None, Headers({})))
"""
        assert json.loads(_python(script))["name"] == "POST /v1/search"


class TestConfig:
    def test_tracing_is_off_by_default(self) -> None:
        assert build_request_spans(AppConfig().tracing, {}) is None

    def test_as_long_as_it_is_off_nothing_of_opentelemetry_is_imported(self) -> None:
        script = """
import sys
import serve_app.api.app
from serve_app.config import AppConfig
from serve_app.tracing import TracingConfig, build_request_spans
loaded = lambda: any(name.startswith("opentelemetry") for name in sys.modules)
build_request_spans(AppConfig().tracing, {})
print(loaded())
build_request_spans(TracingConfig(exporter="console"), {})
print(loaded())
"""
        assert _python(script).split() == ["False", "True"]

    @pytest.mark.parametrize(
        ("tracing", "complaint"),
        [
            ({"exporter": "jaeger"}, "'jaeger' is no exporter; write 'otlp', 'console', or 'module:factory'"),
            ({"exporter": ":factory"}, "is no exporter"),
            ({"exporter": "module:"}, "is no exporter"),
            ({"exporter": "console", "endpoint": "http://collector"}, "endpoint is of use with exporter 'otlp' only"),
            ({"exporter": "otlp", "endpoint": "collector:4318"}, "endpoint"),
            ({"sample_ratio": 1.1}, "less than or equal to 1"),
            ({"sample_ratio": -0.1}, "greater than or equal to 0"),
            ({"service_name": ""}, "service_name"),
            ({"ratio": 0.5}, "unknown key 'ratio'.*did you mean 'sample_ratio'"),
        ],
    )
    def test_settings_that_can_not_work_are_refused(self, tracing: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            AppConfig.model_validate({"tracing": tracing})

    @pytest.mark.parametrize(
        ("exporter", "complaint"),
        [
            ("no_such_module:factory", "'no_such_module:factory' can't be imported: .*no_such_module"),
            ("json:no_such_factory", "'json:no_such_factory' can't be imported: .*no_such_factory"),
            ("not a module:factory", "can't be imported"),
            (f"{__name__}:no_exporter", "makes a str, which is no SpanExporter"),
            (f"{__name__}:NO_EXPORTER", "makes a str, which is no SpanExporter"),
        ],
    )
    def test_a_factory_that_makes_no_exporter_is_a_config_error(self, exporter: str, complaint: str) -> None:
        with pytest.raises(ConfigError, match=f"tracing.exporter .*{complaint}"):
            build_request_spans(TracingConfig(exporter=exporter), {})

    def test_otlp_without_its_package_is_a_config_error_that_names_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
        with pytest.raises(ConfigError, match="needs the package opentelemetry-exporter-otlp-proto-http"):
            build_request_spans(TracingConfig(exporter="otlp"), {})


def _python(script: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
