"""Whether requests have OpenTelemetry spans, and where these go. OpenTelemetry is imported only where they have."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from deployments.errors import ConfigError
from deployments.section import Section

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from serve_app.spans import RequestSpans

OTLP = "otlp"
CONSOLE = "console"

_OTLP_PACKAGE = "opentelemetry-exporter-otlp-proto-http"


class TracingConfig(Section):
    """OpenTelemetry: one span for each request, one below it for each call of a stage. Off unless `exporter` is set."""

    exporter: str | None = Field(
        None,
        description="Where spans go: `otlp` to a collector over OTLP/HTTP, `console` to the replica's log, "
        "`module:factory` to the SpanExporter that this callable returns; null makes none.",
    )
    endpoint: str | None = Field(
        None,
        pattern="^https?://.",
        description="With `otlp`: the whole URL, `http://collector:4318/v1/traces`; null leaves it to the standard "
        "variables `OTEL_EXPORTER_OTLP_*`.",
    )
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="The share of requests that get spans, of those that don't continue the trace of their client; "
        "the others do as their client's sampled flag says.",
    )
    service_name: str = Field("raglane", min_length=1, description="The resource attribute `service.name`.")

    @field_validator("exporter")
    @classmethod
    def _refuse_unknown_exporters(cls, exporter: str | None) -> str | None:
        if exporter in (None, OTLP, CONSOLE):
            return exporter
        module, _, factory = exporter.partition(":")
        if not module or not factory:
            raise ValueError(f"{exporter!r} is no exporter; write {OTLP!r}, {CONSOLE!r}, or 'module:factory'")
        return exporter

    @model_validator(mode="after")
    def _refuse_an_unused_endpoint(self) -> TracingConfig:
        if self.endpoint is not None and self.exporter not in (None, OTLP):
            raise ValueError(f"endpoint is of use with exporter {OTLP!r} only, not with {self.exporter!r}")
        return self


def build_request_spans(config: TracingConfig, resource: Mapping[str, str]) -> RequestSpans | None:
    """The observer that makes the spans; None where tracing is off. `resource` says where this process runs.

    Raises ConfigError where the exporter can't be built.
    """
    if config.exporter is None:
        return None
    exporter = _build_exporter(config.exporter, config.endpoint)
    from serve_app.spans import RequestSpans

    return RequestSpans(exporter, config.sample_ratio, {"service.name": config.service_name, **resource})


def _build_exporter(name: str, endpoint: str | None) -> SpanExporter:
    if name == OTLP:
        return _build_otlp_exporter(endpoint)
    if name == CONSOLE:
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        # One line for each, as in every other log; the default is a page.
        return ConsoleSpanExporter(out=sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n")
    return _call_factory(name)


def _build_otlp_exporter(endpoint: str | None) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(
            f"tracing.exporter {OTLP!r} needs the package {_OTLP_PACKAGE} in the version of opentelemetry-sdk: {error}"
        ) from error
    return OTLPSpanExporter(endpoint=endpoint)


def _call_factory(path: str) -> SpanExporter:
    from opentelemetry.sdk.trace.export import SpanExporter

    try:
        factory = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"tracing.exporter {path!r} can't be imported: {error}") from error
    exporter = factory() if callable(factory) else factory
    if not isinstance(exporter, SpanExporter):
        raise ConfigError(f"tracing.exporter {path!r} makes a {type(exporter).__name__}, which is no SpanExporter")
    return exporter
