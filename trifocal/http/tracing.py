"""OpenTelemetry traces: one span a request, made when it has ended, with vLLM's attribute names. An extra."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from trifocal.errors import ConfigError
from trifocal.http.context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NS = 10**9
_CLOSE_S = 3.0


class Tracer:
    """Records requests with a `TracerProvider`. A request that brings a `traceparent` continues that trace."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("trifocal")

    @classmethod
    def to_endpoint(cls, endpoint: str) -> Tracer:
        """Spans go to an OTLP collector by HTTP. Raises `ConfigError` where that cannot be."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigError("--otlp-traces-endpoint needs OpenTelemetry: pip install 'trifocal[otel]'") from None
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"--otlp-traces-endpoint {endpoint}: traces are sent as OTLP over HTTP, not gRPC; give a URL like "
                "http://collector:4318/v1/traces"
            )
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come on top of this, OTEL_EXPORTER_OTLP_* shape the sending.
        resource = Resource({SERVICE_NAME: "trifocal"}).merge(Resource.create())
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider)

    def record(self, context: RequestContext) -> None:
        """Make the span of a request that has ended; requests that are not about answers have none."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if context.params is None:
            return
        span = self._tracer.start_span(
            "llm_request",
            context=TraceContextTextMapPropagator().extract(context.headers),
            kind=SpanKind.SERVER,
            attributes=attributes(context),
            start_time=int(context.began * _NS),
        )
        if context.error is not None:
            span.set_status(Status(StatusCode.ERROR, context.error))
        span.end(int((context.began + context.ended - context.arrived) * _NS))

    def close(self) -> None:
        """Send what is left, for a few seconds at most: a collector that is away must not hold the server up."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSE_S)


def attributes(context: RequestContext) -> dict[str, Any]:
    """What a span tells. Times are seconds."""
    params, first = context.params, context.first_token
    assert params is not None
    found = {
        "gen_ai.request.id": context.id,
        "gen_ai.response.model": context.model,
        "gen_ai.request.n": params.n,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.usage.prompt_tokens": context.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": context.num_output_tokens,
        "gen_ai.latency.e2e": context.ended - context.arrived,
        "gen_ai.latency.time_to_first_token": None if first is None else first - context.arrived,
        "http.response.status_code": context.status,
        "error.type": context.error,
        **{f"trifocal.media.{step}_seconds": seconds for step, seconds in context.steps.items()},
    }
    return {name: value for name, value in found.items() if value is not None}
