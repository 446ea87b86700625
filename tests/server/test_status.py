"""Models, health, version and metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from tests.server.helpers import HELLO, MODEL, ROOT, ask, image_part, metric, picture
from trifocal import __version__
from trifocal.config import EngineArgs, resolve
from trifocal.errors import RequestError
from trifocal.server.app import create_app
from trifocal.server.args import ServerArgs
from trifocal.server.service import Service

VLLM_NAMES = (
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc",
    "prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total",
    "num_preemptions_total", "request_success_total", "time_to_first_token_seconds_bucket",
    "time_per_output_token_seconds_bucket", "inter_token_latency_seconds_count", "e2e_request_latency_seconds_sum",
    "request_prompt_tokens_count", "request_generation_tokens_count", "request_decode_time_seconds_sum",
    "request_params_max_tokens_count",
)  # fmt: skip


def test_models(client: openai.OpenAI, checkpoint: Path) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert getattr(model, "max_model_len", None) == 1024 and getattr(model, "root", None) == str(checkpoint)
    assert client.models.retrieve(MODEL).id == MODEL
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
    for name in VLLM_NAMES:
        assert f"vllm:{name}{{" in text, name
        if not name.startswith(("gpu_", "time_per_output")):
            assert f"trifocal:{name}{{" in text, name
    for name in OUR_NAMES:
        assert f"trifocal:{name}{{" in text and f"vllm:{name}{{" not in text, name
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.match(r'(vllm|trifocal):\w+\{.*model_name="tiny".*\} \S+$', line) for line in samples)
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
