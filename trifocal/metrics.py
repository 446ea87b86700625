"""Prometheus metrics: vLLM's names, each with the prefixes `vllm:` and `trifocal:` from one definition.

The engine's gauges and counters come from `EngineStats` at the time of a scrape; what only the server sees (latencies,
how requests end) is observed as it happens. Each `Metrics` has a registry of its own. Labels never have values that
clients make up: their number would have no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from trifocal.config.engine import EngineConfig
from trifocal.types import STEP_TOKEN_BOUNDS, EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOTH = ("vllm", "trifocal")
_OURS = ("trifocal",)
_OLD = ("vllm",)  # names of vLLM 0.9 and before that later versions changed; dashboards of their time ask for them
_VLLM_LABELS = {"engine": "0"}  # of what the server observes: vLLM numbers engines, some dashboards group by that
_OWN_NAMES = {
    "requests_queued", "tokens_queued", "media_bytes_in_flight", "http_responses", "requests_refused",
    "media_step_seconds", "request_body_bytes", "media_bytes",
}  # fmt: skip
_OLD_NAMES = {"inter_token_latency_seconds": "vllm:time_per_output_token_seconds"}

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)
_CHOICES = (1, 2, 5, 10, 20)
_PREEMPTIONS = (0, 1, 2, 3, 4, 5, 10, 20)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NOT_COUNTED = frozenset({"/metrics", "/health", "/ping", "/live", "/ready", "/version"})  # as in vLLM: probes, scrapes
MEDIA_STEPS = ("fetch", "decode", "process")


@dataclass(frozen=True)
class EngineMetric:
    """One number of `EngineStats` under its public name."""

    name: str
    meaning: str
    value: Callable[[EngineStats], float]
    is_counter: bool = False
    prefixes: tuple[str, ...] = _BOTH

    def families(self, stats: Sequence[EngineStats], model_name: str) -> Iterable[Metric]:
        """The metric as Prometheus takes it, once per prefix; `stats` are those of each engine."""
        kind = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        for prefix in self.prefixes:
            family = kind(f"{prefix}:{self.name}", self.meaning, labels=_label_names(prefix, stats))
            for index, each in enumerate(stats):
                family.add_metric(_labels(prefix, stats, model_name, index), self.value(each))
            yield family


def _label_names(prefix: str, stats: Sequence[EngineStats]) -> list[str]:
    """Labels of what each engine has; those of vLLM have a number even where there is one engine."""
    return ["model_name", "engine"] if prefix == "vllm" or len(stats) > 1 else ["model_name"]


def _labels(prefix: str, stats: Sequence[EngineStats], model_name: str, index: int) -> list[str]:
    return [model_name, str(index)][: len(_label_names(prefix, stats))]


def _kv_usage(stats: EngineStats) -> float:
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0


ENGINE_METRICS = (
    EngineMetric("num_requests_running", "sequences in the running batch", lambda s: s.num_running),
    EngineMetric("num_requests_waiting", "sequences waiting for their first step", lambda s: s.num_waiting),
    EngineMetric("kv_cache_usage_perc", "share of KV blocks in use, 0 to 1", _kv_usage),
    EngineMetric("gpu_cache_usage_perc", "older name of kv_cache_usage_perc", _kv_usage, prefixes=_OLD),
    EngineMetric("num_requests_swapped", "none: nothing is swapped out", lambda s: 0, prefixes=_OLD),
    EngineMetric("cpu_cache_usage_perc", "none: nothing is swapped out", lambda s: 0, prefixes=_OLD),
    EngineMetric("prefix_cache_queries", "prompt tokens looked up in the cache", lambda s: s.prefix_queries, True),
    EngineMetric("prefix_cache_hits", "prompt tokens found in the cache", lambda s: s.prefix_hits, True),
    EngineMetric(
        "gpu_prefix_cache_queries", "older name of prefix_cache_queries", lambda s: s.prefix_queries, True, _OLD
    ),
    EngineMetric("gpu_prefix_cache_hits", "older name of prefix_cache_hits", lambda s: s.prefix_hits, True, _OLD),
    EngineMetric(
        "num_preemptions", "sequences that were preempted and started again", lambda s: s.num_preemptions, True
    ),
    EngineMetric("prompt_tokens", "prompt tokens taken in", lambda s: s.num_prompt_tokens, True),
    EngineMetric("generation_tokens", "tokens generated", lambda s: s.num_generation_tokens, True),
    EngineMetric("engine_steps", "steps of the engine", lambda s: s.num_steps, True, _OURS),
    EngineMetric("kv_blocks_used", "KV blocks that sequences hold", lambda s: s.kv_blocks_used, prefixes=_OURS),
    EngineMetric("kv_blocks_total", "KV blocks that exist", lambda s: s.kv_blocks_total, prefixes=_OURS),
    EngineMetric("media_encoded", "media that the vision tower encoded", lambda s: s.num_media_encoded, True, _OURS),
    EngineMetric("media_encode_seconds", "seconds spent on encoding them", lambda s: s.media_encode_s, True, _OURS),
    EngineMetric("encoder_cache_hits", "media that needed no vision work", lambda s: s.encoder_hits, True, _OURS),
    EngineMetric("encoder_cache_bytes", "bytes of cached embeddings", lambda s: s.encoder_bytes_cached, prefixes=_OURS),
    EngineMetric(
        "encoder_pinned_bytes", "bytes of embeddings in use", lambda s: s.encoder_bytes_pinned, prefixes=_OURS
    ),
    EngineMetric("engine_restarts", "engines that replaced a dead one", lambda s: s.num_restarts, True, _OURS),
    EngineMetric("requests_replayed", "requests that went on in a new engine", lambda s: s.num_replays, True, _OURS),
)


class Metrics(Collector):
    """Everything that `/metrics` shows of one server. `cache_config` is what `cache_config_info` tells."""

    def __init__(self, model_name: str, cache_config: Mapping[str, str]) -> None:
        self._model_name = model_name
        self._cache_config = cache_config
        self._stats: Sequence[EngineStats] = ()
        self._observed: list[Histogram | Counter | Gauge] = []
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "request in to first token", _SECONDS)
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", "between two tokens", _SECONDS)
        self.time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "mean time per token of a choice, after the first", _SECONDS
        )
        self.e2e_request_latency = self._histogram("e2e_request_latency_seconds", "request in to last token", _SECONDS)
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "prompt tokens of a request", _TOKENS)
        self.request_generation_tokens = self._histogram("request_generation_tokens", "tokens of a choice", _TOKENS)
        self.request_params_n = self._histogram("request_params_n", "choices asked for", _CHOICES)
        self.request_params_max_tokens = self._histogram("request_params_max_tokens", "max_tokens asked for", _TOKENS)
        self._request_queue_time = self._histogram("request_queue_time_seconds", "arrival to first step", _SECONDS)
        self._request_prefill_time = self._histogram(
            "request_prefill_time_seconds", "first step to first token", _SECONDS
        )
        self._request_decode_time = self._histogram("request_decode_time_seconds", "first to last token", _SECONDS)
        self._request_inference_time = self._histogram(
            "request_inference_time_seconds", "first step to last token", _SECONDS
        )
        self.request_max_num_generation_tokens = self._histogram(
            "request_max_num_generation_tokens", "tokens of a prompt's longest choice", _TOKENS
        )
        self.request_num_preemptions = self._histogram(
            "request_num_preemptions", "how often a choice started again", _PREEMPTIONS
        )
        success = self._counter("request_success", "choices by finish reason", "finished_reason")
        self._success = {reason: success.labels(model_name, reason) for reason in ("stop", "length", "abort", "error")}
        self._responses = self._counter("http_responses", "responses by route and status", "route", "status")
        self._http_requests = Counter(
            "http_requests", "requests by route, method and class of status, without probes and scrapes",
            ["handler", "method", "status"], registry=None,
        )  # fmt: skip
        self._refusals = self._counter("requests_refused", "requests refused or failed, by error code", "code")
        steps = self._histogram_of("media_step_seconds", "time for all media of a request", _SECONDS, "step")
        self.media_steps = {step: steps.labels(model_name, step) for step in MEDIA_STEPS}
        self.body_bytes = self._counter("request_body_bytes", "bytes of request bodies").labels(model_name)
        self.media_bytes = self._counter("media_bytes", "bytes of media files, fetched or inline").labels(model_name)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return self._histogram_of(name, meaning, buckets).labels(self._model_name)

    def _histogram_of(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(name, meaning, ["model_name", *labels], buckets=buckets, registry=None)
        self._observed.append(histogram)
        return histogram

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        counter = Counter(name, meaning, ["model_name", *labels], registry=None)
        self._observed.append(counter)
        return counter

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show `value()` at every scrape."""
        gauge = Gauge(name, meaning, ["model_name"], registry=None)
        gauge.labels(self._model_name).set_function(value)
        self._observed.append(gauge)

    def finished(self, reason: str) -> None:
        """Count the end of one choice: stop, length, abort or error."""
        self._success[reason].inc()

    def computed(self, opened: float, scheduled: float, first: float, last: float) -> None:
        """Observe the phases of a choice: when the engine was given it, began with it, its first and last token."""
        self._request_queue_time.observe(scheduled - opened)
        self._request_prefill_time.observe(first - scheduled)
        self._request_decode_time.observe(last - first)
        self._request_inference_time.observe(last - scheduled)

    def responded(self, method: str, route: str, status: int, error: str | None) -> None:
        """Count a response; `route` is the route's own path, `error` the code of what was refused or failed."""
        self._responses.labels(self._model_name, route or "none", str(status)).inc()
        if route not in _NOT_COUNTED:
            method = method if method in _METHODS else "other"
            self._http_requests.labels(route or "none", method, f"{status // 100}xx").inc()
        if error is not None:
            self._refusals.labels(self._model_name, error).inc()

    def render(self, stats: Sequence[EngineStats]) -> bytes:
        """The text that Prometheus scrapes, with `stats` as the part of each engine."""
        self._stats = stats
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: names never clash with those of another collector, this registry has one."""
        return ()

    def collect(self) -> Iterable[Metric]:
        for metric in ENGINE_METRICS:
            yield from metric.families(self._stats, self._model_name)
        for prefix in _BOTH:
            yield self._step_tokens(prefix)
            yield self._cache_config_info(prefix)
        for observed in self._observed:
            for family in observed.collect():
                if family.name not in _OWN_NAMES:
                    yield _renamed(family, f"vllm:{family.name}", _VLLM_LABELS)
                yield _renamed(family, f"trifocal:{family.name}", {})
                if family.name in _OLD_NAMES:
                    yield _renamed(family, _OLD_NAMES[family.name], _VLLM_LABELS)
        yield from self._http_requests.collect()  # as the instrumentation that vLLM uses names and labels it

    def _step_tokens(self, prefix: str) -> Metric:
        bounds = [*(str(float(bound)) for bound in STEP_TOKEN_BOUNDS), "+Inf"]
        names = _label_names(prefix, self._stats)
        family = HistogramMetricFamily(f"{prefix}:iteration_tokens_total", "tokens of a step", labels=names)
        for index, stats in enumerate(self._stats):
            labels = _labels(prefix, self._stats, self._model_name, index)
            buckets = list(zip(bounds, accumulate(stats.steps_by_tokens), strict=True))
            family.add_metric(labels, buckets, sum_value=stats.num_step_tokens)
        return family

    def _cache_config_info(self, prefix: str) -> Metric:
        names = [*_label_names(prefix, self._stats), *self._cache_config, "num_gpu_blocks"]
        family = GaugeMetricFamily(f"{prefix}:cache_config_info", "configuration of the KV cache", labels=names)
        for index, stats in enumerate(self._stats):
            labels = _labels(prefix, self._stats, self._model_name, index)
            family.add_metric([*labels, *self._cache_config.values(), str(stats.kv_blocks_total)], 1)
        return family


def cache_config(config: EngineConfig) -> dict[str, str]:
    """vLLM's labels of `cache_config_info`, those that have a meaning here."""
    values = {
        "block_size": config.cache.block_size,
        "cache_dtype": config.cache.kv_cache_dtype,
        "enable_prefix_caching": config.scheduling.enable_prefix_caching,
        "gpu_memory_utilization": config.cache.gpu_memory_utilization,
        "num_gpu_blocks_override": config.cache.num_gpu_blocks_override,
    }
    return {name: str(value) for name, value in values.items()}


def _renamed(family: Metric, name: str, labels: Mapping[str, str]) -> Metric:
    twin = Metric(name, family.documentation, family.type)
    twin.samples = [
        sample._replace(name=name + sample.name.removeprefix(family.name), labels={**sample.labels, **labels})
        for sample in family.samples
    ]
    return twin
