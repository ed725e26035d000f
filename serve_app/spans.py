"""The OpenTelemetry spans of a request, made when it is over: nothing is done for them while it runs."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers

from serve_app.api.observation import UNKNOWN_ENDPOINT, RequestRecord
from serve_app.trace import StageRow

logger = logging.getLogger(__name__)

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_FAILURES = ("server_error", "deadline")

# Anybody can invent others, so the semantic conventions have one name for all of those.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OTHER_METHOD = "_OTHER"


class _HeaderGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return carrier.getlist(key) or None

    def keys(self, carrier: Headers) -> list[str]:
        return carrier.keys()


_HEADER_GETTER = _HeaderGetter()


class RequestSpans:
    """Observes requests: exports a SERVER span for each, and below it one for each call of a stage.

    A request whose `traceparent` is valid continues that trace. Spans leave in batches, from a thread of their own;
    those that the exporter is too slow for are dropped.
    """

    def __init__(self, exporter: SpanExporter, sample_ratio: float, resource: Mapping[str, str]) -> None:
        release = _release()
        self._resource = Resource.create({"service.version": release, **resource})
        self._scope = InstrumentationScope("raglane", release)
        self._propagator = TraceContextTextMapPropagator()
        self._sampler = ParentBasedTraceIdRatio(sample_ratio)
        self._ids = RandomIdGenerator()
        self._processor = BatchSpanProcessor(exporter)
        self._logged: set[type[Exception]] = set()
        atexit.register(self.shutdown)

    def __call__(self, record: RequestRecord) -> None:
        """Leave the request's spans to the exporting thread. Never raises: spans are not worth a request."""
        try:
            for span in self._spans(record):
                self._processor.on_end(span)
        except Exception as error:
            if type(error) not in self._logged:
                self._logged.add(type(error))
                logger.exception("a request has no spans; further errors of this kind are not logged")

    def shutdown(self) -> None:
        """Export what waits, which takes as long as the exporter does, and nothing from then on."""
        atexit.unregister(self.shutdown)
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _spans(self, record: RequestRecord) -> Iterator[ReadableSpan]:
        """The request's span, then those of its stages in the order in which they ended; none if it is not sampled."""
        context = self._propagator.extract(record.headers, Context(), _HEADER_GETTER)
        remote = get_current_span(context).get_span_context()
        parent = remote if remote.is_valid else None
        trace_id = parent.trace_id if parent else self._ids.generate_trace_id()
        name = _request_name(record)
        sampling = self._sampler.should_sample(context, trace_id, name, SpanKind.SERVER)
        if sampling.decision is not Decision.RECORD_AND_SAMPLE:
            return
        request = self._new_context(trace_id, sampling.trace_state)
        # Not by a Tracer, as the SDK advises: its spans are made to be changed by any thread while they last, and cost
        # several times as much.
        yield ReadableSpan(
            name,
            request,
            parent,
            self._resource,
            _request_attributes(record),
            kind=SpanKind.SERVER,
            instrumentation_scope=self._scope,
            status=_status(record),
            start_time=record.started_at_ns,
            end_time=_epoch_ns(record, record.seconds),
        )
        if record.trace is None:
            return
        # A trace begins some time after the head of its request, with the body.
        trace_start_s = record.trace.started_at - record.started_s
        for row in record.trace.rows:
            start_s = trace_start_s + row.start_s
            yield ReadableSpan(
                f"{row.stage} {row.branch}" if row.branch else row.stage,
                self._new_context(trace_id, request.trace_state),
                request,
                self._resource,
                _stage_attributes(row),
                instrumentation_scope=self._scope,
                start_time=_epoch_ns(record, start_s),
                end_time=_epoch_ns(record, start_s + row.total_s),
            )

    def _new_context(self, trace_id: int, trace_state: TraceState | None) -> SpanContext:
        return SpanContext(
            trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=_SAMPLED, trace_state=trace_state
        )


def _epoch_ns(record: RequestRecord, since_start_s: float) -> int:
    return record.started_at_ns + round(since_start_s * 1e9)


def _method(record: RequestRecord) -> str:
    return record.method if record.method in _METHODS else _OTHER_METHOD


def _request_name(record: RequestRecord) -> str:
    """Method and route; the method alone where nothing was routed, "HTTP" for methods that don't exist (OpenTelemetry's
    semantic conventions for HTTP): few names, so that requests can be grouped by them.
    """
    method = record.method if record.method in _METHODS else "HTTP"
    return method if record.endpoint == UNKNOWN_ENDPOINT else f"{method} {record.endpoint}"


def _request_attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": _method(record),
        "url.path": record.path,
        "raglane.request_id": record.request_id,
        "raglane.outcome": record.outcome,
    }
    if record.endpoint != UNKNOWN_ENDPOINT:
        attributes["http.route"] = record.endpoint
    if record.status is not None:
        attributes["http.response.status_code"] = record.status
    if record.outcome in _FAILURES:
        attributes["error.type"] = record.outcome
    if record.trace is not None and record.trace.degraded:
        attributes["raglane.degraded"] = record.trace.degraded
    return attributes


def _stage_attributes(row: StageRow) -> dict[str, AttributeValue]:
    return {
        "raglane.stage": row.stage,
        "raglane.branch": row.branch,
        "raglane.queue_s": row.queue_s,
        "raglane.batch_wait_s": row.batch_wait_s,
        "raglane.compute_s": row.compute_s,
        "raglane.batch_size": row.batch_size,
    }


def _status(record: RequestRecord) -> Status:
    return Status(StatusCode.ERROR if record.outcome in _FAILURES else StatusCode.UNSET)


def _release() -> str:
    try:
        return version("raglane")
    except PackageNotFoundError:
        # Runs from a checkout that is not installed.
        return "unknown"
