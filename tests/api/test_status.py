"""Models, health, version and metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from tests.api.helpers import HELLO, MODEL, ROOT, ask, image_part, metric, picture
from trifocal import __version__
from trifocal.api.app import create_app
from trifocal.api.service import Service
from trifocal.config.engine import EngineArgs, resolve
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError

# Every name in vLLM's dashboards (Performance Statistics, Query Statistics, vLLM) and others that their users ask for.
VLLM_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info")
VLLM_COUNTERS = (
    "prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total",
    "num_preemptions_total", "request_success_total",
)  # fmt: skip
VLLM_HISTOGRAMS = (
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_inference_time_seconds", "request_time_per_output_token_seconds", "request_prompt_tokens",
    "request_generation_tokens", "request_max_num_generation_tokens", "request_params_n", "request_params_max_tokens",
    "request_num_preemptions", "iteration_tokens_total",
)  # fmt: skip
OLD_NAMES = (
    "gpu_cache_usage_perc", "num_requests_swapped", "cpu_cache_usage_perc", "gpu_prefix_cache_hits_total",
    "time_per_output_token_seconds_bucket", "time_per_output_token_seconds_count",
)  # fmt: skip
PHASES = ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds")


def test_models(client: openai.OpenAI, checkpoint: Path) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert getattr(model, "max_model_len", None) == 1024 and getattr(model, "root", None) == str(checkpoint)
    assert client.models.retrieve(MODEL).id == MODEL
    [permission] = getattr(model, "permission", [])
    assert permission["id"].startswith("modelperm-") and permission["object"] == "model_permission"
    assert permission["allow_sampling"] and permission["organization"] == "*" and permission["group"] is None
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such/model")


def test_health_and_version(http: httpx.Client) -> None:
    assert (http.get("/health").status_code, http.get("/health").content) == (200, b"")
    for path in ("/health", "/live", "/ready", "/ping"):
        assert (http.get(path).status_code, http.get(path).content) == (200, b"")
    assert http.get("/version").json() == {"version": __version__}


@pytest.mark.parametrize("path", [
    "/health", "/live", "/ready", "/ping", "/version", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/openapi.json",
])  # fmt: skip
def test_head_is_get_without_its_body(http: httpx.Client, path: str) -> None:
    got, asked = http.get(path), http.head(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers.get("content-type") == got.headers.get("content-type")
    if path != "/metrics":  # whose length changes
        assert asked.headers["content-length"] == got.headers["content-length"]
    assert http.head("/v1/models/nobody").status_code == 404


@pytest.mark.parametrize("name", [MODEL, f"{MODEL}/", "", None], ids=str)
def test_names_that_are_the_model(http: httpx.Client, name: str | None) -> None:
    """No name is the first one that is served, and a slash at the end of a folder is no part of its name."""
    answer = http.post("/v1/chat/completions", json={"model": name, "messages": HELLO, "max_tokens": 1})
    assert answer.status_code == 200 and answer.json()["model"] == MODEL
    assert http.post("/tokenize", json={"model": name, "prompt": "x"}).status_code == 200
    card = http.get(f"/v1/models/{name or ''}").json()
    assert (card["data"][0] if not name else card)["id"] == MODEL


@pytest.mark.parametrize(
    ("served", "asked", "answered"),
    [
        (["/m/foo/"], "/m/foo", "/m/foo/"), (["/m/foo"], "/m/foo/", "/m/foo"), (["f/", "f"], "f", "f"),
        (["a", "b/"], "b", "b/"), (["a", "b"], "", "a"), (["a"], "/", None), (["/"], "", "/"), (["/"], "//", None),
    ],
)  # fmt: skip
def test_a_slash_at_the_end_of_a_name(checkpoint: Path, served: list[str], asked: str, answered: str | None) -> None:
    config = resolve(EngineArgs(model=str(checkpoint)))
    app = create_app(cast(Any, None), cast(Any, None), config, ServerArgs(served_model_name=served))
    service: Service = app.state.service
    if answered is not None:
        assert service.check_model(asked) == answered
        return
    with pytest.raises(RequestError, match="does not exist"):
        service.check_model(asked)


OUR_NAMES = (
    "requests_queued", "tokens_queued", "media_bytes_in_flight", "http_responses_total", "request_body_bytes_total",
    "media_bytes_total", "media_step_seconds_bucket",
)  # fmt: skip


def test_metrics_have_vllms_names_and_ours(http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 2, "ignore_eos": True})
    text = http.get("/metrics").text
    parts = [f"{name}_{part}" for name in VLLM_HISTOGRAMS for part in ("bucket", "sum", "count")]
    for name in (*VLLM_GAUGES, *VLLM_COUNTERS, *parts):
        assert f"vllm:{name}{{" in text and f"trifocal:{name}{{" in text, name
    for name in OLD_NAMES:
        assert f"vllm:{name}{{" in text and f"trifocal:{name}{{" not in text, name
    for name in OUR_NAMES:
        assert f"trifocal:{name}{{" in text and f"vllm:{name}{{" not in text, name
    samples = [line for line in text.splitlines() if not line.startswith(("#", "http_requests_"))]
    assert all(re.match(r'(vllm|trifocal):\w+\{.*model_name="tiny".*\} \S+$', line) for line in samples)
    assert all(('engine="0"' in line) == line.startswith("vllm:") for line in samples)
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_every_metric_of_the_documentation_is_there(http: httpx.Client) -> None:
    """And no other: `operations.md` lists them by their names without prefix."""
    page = (ROOT / "docs" / "operations.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")][1:]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    types = re.findall(r"^# TYPE trifocal:(\w+) (\w+)$", http.get("/metrics").text, re.MULTILINE)
    shown = {name.removesuffix("_total") if kind == "counter" else name for name, kind in types}
    shown -= {name for name in shown if name.endswith("_created")}
    assert told == shown


def test_metrics_count_requests(http: httpx.Client) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count",
             "time_to_first_token_seconds_count", "inter_token_latency_seconds_count",
             "request_time_per_output_token_seconds_count")  # fmt: skip
    before = {name: metric(http, f"vllm:{name}") for name in names}
    body = {"messages": HELLO, "max_tokens": 5, "ignore_eos": True, "n": 2}
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    grown = {name: metric(http, f"vllm:{name}") - before[name] for name in names}
    assert grown["generation_tokens_total"] == usage["completion_tokens"] == 10
    assert grown["prompt_tokens_total"] == 2 * usage["prompt_tokens"]  # each choice is a sequence of its own
    assert grown["e2e_request_latency_seconds_count"] == grown["time_to_first_token_seconds_count"] == 2
    assert grown["request_time_per_output_token_seconds_count"] == 2
    assert 1 <= grown["inter_token_latency_seconds_count"] <= 8


def sums(http: httpx.Client, *names: str) -> dict[str, float]:
    return {name: metric(http, f"vllm:{name}") for name in names}


def test_phases_of_a_request_add_up(http: httpx.Client) -> None:
    """Eight choices in four places: some wait. Queue, prefill and decode are parts of what their clients wait for."""
    names = ("e2e_request_latency_seconds", "request_inference_time_seconds", "request_num_preemptions", *PHASES)
    series = [f"{name}_{part}" for name in names for part in ("sum", "count")]
    before = sums(http, *series)
    body = {"prompt": ["Hello there", "How are you?"], "max_tokens": 30, "ignore_eos": True, "n": 4}
    assert http.post("/v1/completions", json=body).status_code == 200
    grown = {name: value - before[name] for name, value in sums(http, *series).items()}
    assert {grown[f"{name}_count"] for name in names} == {8}
    queue, prefill, decode = (grown[f"{name}_sum"] for name in PHASES)
    assert min(prefill, decode) > 0
    assert queue > decode / 8, "four wait for as long as a place is taken"
    assert prefill + decode == pytest.approx(grown["request_inference_time_seconds_sum"])
    assert queue + prefill + decode < grown["e2e_request_latency_seconds_sum"]
    assert grown["request_num_preemptions_sum"] == 0


def test_metrics_count_choices_and_steps(http: httpx.Client) -> None:
    names = ("request_max_num_generation_tokens_sum", "request_max_num_generation_tokens_count",
             "request_generation_tokens_sum", "request_generation_tokens_count")  # fmt: skip
    before = sums(http, *names)
    body = {"prompt": ["Hello", "Hi"], "max_tokens": 6, "ignore_eos": True, "n": 2}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert [value - before[name] for name, value in sums(http, *names).items()] == [12, 2, 24, 4]
    pattern = r"^vllm:iteration_tokens_total_bucket\{.*\} (\S+)$"
    buckets = [float(count) for count in re.findall(pattern, http.get("/metrics").text, re.MULTILINE)]
    assert buckets == sorted(buckets) and len(buckets) == 14
    steps, tokens = sums(http, "iteration_tokens_total_count", "iteration_tokens_total_sum").values()
    assert steps == metric(http, "trifocal:engine_steps_total") == buckets[-1]
    assert metric(http, "vllm:generation_tokens_total") < tokens, "prompts are computed, too"


def test_metrics_tell_the_cache(http: httpx.Client) -> None:
    [labels] = re.findall(r"^vllm:cache_config_info\{(.*)\} 1.0$", http.get("/metrics").text, re.MULTILINE)
    told = dict(re.findall(r'(\w+)="(.*?)"', labels))
    assert told.pop("num_gpu_blocks") == str(int(metric(http, "trifocal:kv_blocks_total")))
    assert told == {
        "model_name": "tiny", "engine": "0", "block_size": "16", "cache_dtype": "float32",
        "enable_prefix_caching": "True", "gpu_memory_utilization": "0.9", "num_gpu_blocks_override": "None",
    }  # fmt: skip


def test_requests_are_counted_by_what_the_server_knows_of_them(http: httpx.Client) -> None:
    """`http_requests_total` as vLLM has it. What strangers write into paths and methods is in no label."""

    def counts() -> dict[tuple[str, str, str], float]:
        pattern = r'^http_requests_total\{handler="(.*)",method="(.*)",status="(.*)"\} (\S+)$'
        return {(a, b, c): float(n) for a, b, c, n in re.findall(pattern, http.get("/metrics").text, re.MULTILINE)}

    before = counts()
    http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
    http.post("/v1/chat/completions", json={"messages": []})
    for number in range(3):
        http.get(f"/v1/models/strange-{number}")
        http.get(f"/strange-{number}")
        http.request(f"STRANGE{number}", f"/strange-{number}")
        http.get("/health")
    after = counts()
    assert {key: number - before.get(key, 0) for key, number in after.items() if number != before.get(key, 0)} == {
        ("/v1/chat/completions", "POST", "2xx"): 1,
        ("/v1/chat/completions", "POST", "4xx"): 1,
        ("/v1/models/{name:path}", "GET", "4xx"): 3,
        ("none", "GET", "4xx"): 3,
        ("none", "other", "4xx"): 3,
    }
    assert "trange" not in http.get("/metrics").text
    assert not {"/health", "/metrics"} & {handler for handler, _, _ in after}


def test_metrics_count_media(http: httpx.Client) -> None:
    def counts() -> tuple[float, float]:
        return metric(http, "trifocal:media_encoded_total"), metric(http, "trifocal:encoder_cache_hits_total")

    def look(text: str, salt: str | None = None) -> None:
        body = {"messages": ask(image_part(picture(seed=77)), text=text), "max_tokens": 1, "cache_salt": salt}
        assert http.post("/v1/chat/completions", json=body).status_code == 200

    encoded, hits = counts()
    seconds = metric(http, "trifocal:media_encode_seconds_total")
    look("Is there one?")
    assert counts() == (encoded + 1, hits)
    first_seconds = metric(http, "trifocal:media_encode_seconds_total")
    assert first_seconds > seconds
    look("Are there two?")
    assert counts() == (encoded + 1, hits + 1)
    assert metric(http, "trifocal:media_encode_seconds_total") == first_seconds
    look("Are there two?", salt="mine")  # one tenant's pictures are not found by another, not even by their time
    assert counts() == (encoded + 2, hits + 1)
    look("Is there one?", salt="mine")
    assert counts() == (encoded + 2, hits + 2)


def test_metrics_count_bytes_and_responses(http: httpx.Client) -> None:
    def counts() -> tuple[float, float, float]:
        text = http.get("/metrics").text
        row = f'trifocal:http_responses_total{{model_name="{MODEL}",route="/v1/chat/completions",status="200"}} '
        responses = [float(line.removeprefix(row)) for line in text.splitlines() if line.startswith(row)]
        names = ("trifocal:request_body_bytes_total", "trifocal:media_bytes_total")
        return (sum(responses), *(metric(http, name) for name in names))  # type: ignore[return-value]

    def steps() -> float:
        return metric(http, "trifocal:media_step_seconds_count")

    before, file, num_steps = counts(), picture(seed=78), steps()
    response = http.post("/v1/chat/completions", json={"messages": ask(image_part(file)), "max_tokens": 1})
    grown = tuple(now - then for now, then in zip(counts(), before, strict=True))
    assert grown == (1, int(response.request.headers["content-length"]), len(file))
    assert steps() == num_steps + 3  # fetch, decode, process


def test_refused_requests_count_as_nothing(http: httpx.Client) -> None:
    def ended() -> float:
        return metric(http, "vllm:request_success_total")

    before = ended()
    http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 5000})
    assert ended() == before
