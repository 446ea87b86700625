"""Our Grafana dashboard and vLLM's three: what they ask for is exported, and a real Prometheus answers every query."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.helpers import HELLO, KEY, MODEL, ROOT, Server, ask, eventually, free_port, image_part, picture

DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "trifocal.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
FETCHED = ROOT / ".cache" / "prometheus" / "usr" / "bin" / "prometheus"  # by scripts/prometheus
WINDOW = "10s"
QUANTILES = ("0.5", "0.9", "0.95", "0.99")

# What vLLM's dashboards (Performance Statistics, Query Statistics, vLLM) ask, written out from the names in them.
_RATE, _RANGE = '{model_name="$model_name"}[$__rate_interval]', "[$__range]"
_LATENCIES = ("e2e_request_latency_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds")
_SIZES = ("request_prompt_tokens", "request_generation_tokens")
VLLM_QUERIES = [
    *(f"histogram_quantile({q}, sum by(le) (rate(vllm:{name}_bucket{over})))"
      for name in _LATENCIES for q in QUANTILES for over in (_RATE, _RANGE)),
    *(f"rate(vllm:{name}_sum{_RATE}) / rate(vllm:{name}_count{_RATE})" for name in _LATENCIES),
    *(f"sum(increase(vllm:{name}_sum{_RANGE})) / sum(increase(vllm:{name}_count{_RANGE}))" for name in _LATENCIES),
    *(f"histogram_quantile({q}, sum by(le, model_name) (rate(vllm:{_SIZES[0]}_bucket{_RATE})))" for q in QUANTILES),
    *(f"sum by(le) (increase(vllm:{name}_bucket{_RATE}))" for name in _SIZES),
    *(f"sum by (model_name) (rate(vllm:{name}_total{_RATE}))"
      for name in ("request_success", "prompt_tokens", "generation_tokens")),
    f"sum(rate(vllm:prompt_tokens_total{_RATE})) / sum(rate(vllm:request_success_total{_RATE}))",
    f"sum by(finished_reason) (increase(vllm:request_success_total{_RATE}))",
    *(f'vllm:{name}{{model_name="$model_name"}}'
      for name in ("num_requests_running", "num_requests_waiting", "num_requests_swapped", "kv_cache_usage_perc")),
    *(f"rate(vllm:{name}_sum{_RATE})"
      for name in ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
                   "request_max_num_generation_tokens")),
    "rate(vllm:iteration_tokens_total_count[$__rate_interval])",
]  # fmt: skip


def test_the_dashboard_is_laid_out() -> None:
    """Panels have ids of their own, fit into Grafana's 24 columns and lie on nobody else's place."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    assert all('{model_name=~"$model_name"}' in query for query in QUERIES)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used - {"__rate_interval"} <= variables


def test_what_the_dashboard_asks_for_is_exported(http: httpx.Client) -> None:
    """Every name in it, with the labels that it groups by."""
    for _ in range(2):
        body = {"messages": ask(image_part(picture(seed=90))), "max_tokens": 3, "ignore_eos": True}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert http.post("/v1/chat/completions", json={"messages": []}).status_code == 400
    lines = re.findall(r"^(trifocal:\w+)\{(.*)\} \S+$", http.get("/metrics").text, re.MULTILINE)
    labels = {name: set(re.findall(r'(\w+)="', text)) for name, text in lines}
    asked = [name for query in QUERIES for name in re.findall(r"trifocal:\w+", query)]
    assert len(set(asked)) > 30
    assert [name for name in asked if name not in labels] == []
    for query in QUERIES:
        for names in re.findall(r"by \((.*?)\)", query):
            [name, *_] = re.findall(r"trifocal:\w+", query)
            assert set(names.split(", ")) <= labels[name], query
    [definition] = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    name, label = re.fullmatch(r"label_values\((trifocal:\w+), (\w+)\)", definition).groups()
    assert label in labels[name]


# ---------------------------------------------------------------------------------------------- a real Prometheus


@contextmanager
def under_load(url: str) -> Iterator[None]:
    """Clients of every kind, until the block ends: text, pictures new and known, several choices, refusals."""
    over, seeds = threading.Event(), itertools.count(1000)
    failures: list[str] = []

    def client() -> None:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
            while not over.is_set():
                pictures = [image_part(picture(seed=seed)) for seed in (7, next(seeds))]
                bodies: list[tuple[str, dict[str, Any], int]] = [
                    ("chat/completions", {"messages": ask(*pictures), "max_tokens": 8, "ignore_eos": True}, 200),
                    ("chat/completions", {"messages": HELLO, "max_tokens": 8, "n": 3, "ignore_eos": True}, 200),
                    ("completions", {"prompt": "Once upon a time " * 20, "max_tokens": 8, "stream": True}, 200),
                    ("chat/completions", {"messages": HELLO, "temperature": -1}, 400),
                    ("nothing", {}, 404),
                ]
                for path, body, status in bodies:
                    response = http.post(f"/v1/{path}", json=body)
                    if response.status_code != status:
                        failures.append(f"{path}: {response.status_code} {response.text[:200]}")

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []


@contextmanager
def prometheus(program: str, folder: Path, target: Server) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes `target` each second; a client of its API."""
    settings = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{
            "job_name": "trifocal",
            "authorization": {"credentials": KEY},
            "static_configs": [{"targets": [f"127.0.0.1:{target.port}"]}],
        }],
    }  # fmt: skip
    (folder / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
    port = free_port()
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def ask_prometheus(client: httpx.Client, query: str, model: str) -> list[float]:
    """The values of a query's series, with Grafana's variables put in. Anything but an answer fails the test."""
    filled = query.replace("$__rate_interval", WINDOW).replace("$__range", WINDOW).replace("$model_name", model)
    answer = client.get("/query", params={"query": filled}).json()
    assert answer["status"] == "success", (filled, answer)
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def scrapes(client: httpx.Client) -> float:
    """How often the target has answered."""
    try:
        if client.get("/query", params={"query": "up"}).status_code == 503:  # it has just started
            return 0
    except httpx.TransportError:  # nor is it listening yet
        return 0
    return sum(ask_prometheus(client, "sum_over_time(up[1m])", ""))


@pytest.mark.slow
def test_a_real_prometheus_answers_every_query(server: Server, tmp_path: Path) -> None:
    program = shutil.which("prometheus") or (str(FETCHED) if FETCHED.exists() else None)
    if program is None:
        pytest.skip("there is no prometheus here; `make test-prometheus` fetches Debian's")
    with under_load(server.url), prometheus(program, tmp_path, server) as client:
        assert eventually(lambda: scrapes(client) >= 12, 90), (tmp_path / "prometheus.log").read_text()
        for query, model in [(query, ".*") for query in QUERIES] + [(query, MODEL) for query in VLLM_QUERIES]:
            values = ask_prometheus(client, query, model)
            assert values and all(math.isfinite(value) and value >= 0 for value in values), (query, values)
        per_choice = {
            name: ask_prometheus(client, f"rate(vllm:{name}_sum[1m]) / rate(vllm:{name}_count[1m])", "")[0]
            for name in ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
                         "request_inference_time_seconds", "e2e_request_latency_seconds")
        }  # fmt: skip
        queue, prefill, decode, inference, whole = per_choice.values()
        assert prefill + decode == pytest.approx(inference)
        assert 0 < queue + inference < whole
        handlers = client.get("/label/handler/values").json()["data"]
        assert {"/v1/chat/completions", "/v1/completions", "none"} <= set(handlers)
