"""Traces: one span an answer with vLLM's attributes, continuing the client's trace; sent over OTLP; refused clearly."""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.datastructures import Headers

from trifocal.api.openai.errors import error_form
from trifocal.errors import ConfigError
from trifocal.http.context import RequestContext
from trifocal.http.tracing import Tracer
from trifocal.sampling_params import SamplingParams


def context(headers: Mapping[str, str] | None = None, **facts: Any) -> RequestContext:
    made = RequestContext("an-id", "POST", "/v1/chat/completions", "127.0.0.1:1", Headers(headers or {}), error_form)
    made.params, made.model, made.status = SamplingParams(n=2, temperature=0.5, max_tokens=7), "m", 200
    made.num_prompt_tokens, made.num_output_tokens = 11, 5
    made.first_token, made.ended = made.arrived + 0.25, made.arrived + 2.0
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def spans_of(*contexts: RequestContext) -> Sequence[Any]:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = Tracer(provider)
    for each in contexts:
        tracer.record(each)
    tracer.close()
    return memory.get_finished_spans()


def test_a_span_tells_what_happened() -> None:
    [span] = spans_of(context(steps={"decode": 0.5}))
    assert (span.name, span.kind.name, span.parent) == ("llm_request", "SERVER", None)
    expected = {
        "gen_ai.request.id": "an-id", "gen_ai.response.model": "m", "gen_ai.request.n": 2,
        "gen_ai.request.max_tokens": 7, "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.prompt_tokens": 11, "gen_ai.usage.completion_tokens": 5, "http.response.status_code": 200,
        "trifocal.media.decode_seconds": 0.5,
    }  # fmt: skip
    assert {name: span.attributes[name] for name in expected} == expected
    assert span.attributes["gen_ai.latency.e2e"] == pytest.approx(2.0)
    assert span.attributes["gen_ai.latency.time_to_first_token"] == pytest.approx(0.25)
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(2.0)
    assert abs(span.start_time / 1e9 - time.time()) < 60


def test_a_failure_is_marked() -> None:
    [span] = spans_of(context(error="timeout", status=504, first_token=None))
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "timeout")
    assert span.attributes["error.type"] == "timeout"
    assert "gen_ai.latency.time_to_first_token" not in span.attributes


def test_the_clients_trace_goes_on() -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    [span] = spans_of(context({"traceparent": f"00-{trace}-{parent}-01"}))
    assert f"{span.context.trace_id:032x}" == trace and f"{span.parent.span_id:016x}" == parent


def test_what_is_no_request_for_an_answer_has_no_span() -> None:
    assert spans_of(context(params=None)) == ()


def test_spans_reach_a_collector() -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracer = Tracer.to_endpoint(f"http://127.0.0.1:{server.server_port}/v1/traces")
        tracer.record(context())
        tracer.close()
        server.shutdown()
    assert [path for path, _ in received] == ["/v1/traces"]
    assert b"llm_request" in received[0][1] and b"an-id" in received[0][1] and b"trifocal" in received[0][1]


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    tracer = Tracer.to_endpoint("http://127.0.0.1:9/v1/traces")
    tracer.record(context())
    started = time.perf_counter()
    tracer.close()
    assert time.perf_counter() - started < 10


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"--otlp-traces-endpoint needs .*pip install 'trifocal\[otel\]'"):
        Tracer.to_endpoint("http://127.0.0.1:4318/v1/traces")


def test_grpc_is_refused() -> None:
    with pytest.raises(ConfigError, match="OTLP over HTTP, not gRPC"):
        Tracer.to_endpoint("grpc://127.0.0.1:4317")
