"""Clients that others wrote, each as its users run it, against a real server on the built-in model.

`make test-clients` installs them into an environment of their own (`.cache/clients`) and runs this file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trifocal.cli.local_server import LocalServer, choose_port
from trifocal.demo.run import MODEL, NAME, SAMPLES

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
HOME = Path(os.environ.get("TRIFOCAL_TEST_CLIENTS", HERE.parents[1] / ".cache" / "clients"))
PICTURE = SAMPLES / "circle.png"
QUESTION = "What is the image content?"
ANSWER = "A large red circle on a blue background."


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not (HOME / "ready").exists():
        pytest.skip("the clients are not installed: make test-clients")


def run(program: str, *words: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a program of the clients' environment prints; nothing of ours is on its path, and it stays off hubs."""
    found = HOME / "bin" / program
    command = [str(found) if found.exists() else program, *map(str, words)]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_BASE_URL")}
    environment = {**clean, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "-", **(env or {})}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(program: str, script: str, url: str, cwd: Path | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(program, script, url, NAME, PICTURE, QUESTION, cwd=cwd).splitlines()[-1])
    return found


def test_openai_python(demo_server: str) -> None:
    found = ask("python", str(HERE / "ask_openai.py"), demo_server)
    assert found["answer"] == found["streamed"] == ANSWER
    assert found["tokens"][0] == found["tokens"][1] > 32
    assert found["finish_reason"] == "stop" and found["completion_tokens"] <= 4 and found["models"] == [NAME]


def test_openai_npm(demo_server: str, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    shutil.copy(HERE / "ask_openai.mjs", HOME)  # beside its node_modules
    found = ask("node", "ask_openai.mjs", demo_server, cwd=HOME)
    assert found["answer"] == found["streamed"] == ANSWER
    assert found["tokens"][0] == found["tokens"][1] > 32 and found["models"] == [NAME]


def test_langchain_openai(demo_server: str) -> None:
    found = ask("python", str(HERE / "ask_langchain.py"), demo_server)
    assert [found["answer"], found["streamed"], *found["batch"]] == [ANSWER] * 4
    assert found["tokens"] > 32


def test_litellm(demo_server: str) -> None:
    found = ask("python", str(HERE / "ask_litellm.py"), demo_server)
    assert sorted(found) == ["hosted_vllm", "openai"]
    for provider in found.values():
        assert provider["answer"] == provider["streamed"] == ANSWER and provider["tokens"] > 32


def test_llm(demo_server: str, tmp_path: Path) -> None:
    """Its command line, with a picture; streamed unless told otherwise."""
    model = {"model_id": "demo", "model_name": NAME, "api_base": f"{demo_server}/v1", "vision": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    words = ["-m", "demo", QUESTION, "-a", PICTURE, "-o", "temperature", "0", "-o", "max_tokens", "32", "--key", "-"]
    for more in ([], ["--no-stream"]):
        assert run("llm", *words, *more, env={"LLM_USER_PATH": str(tmp_path)}).strip() == ANSWER
    [last] = json.loads(run("llm", "logs", "-n", "1", "--json", env={"LLM_USER_PATH": str(tmp_path)}))
    assert last["input_tokens"] > 32 and last["output_tokens"] > 4


def lm_eval(folder: Path, url: str, kind: str, task: dict[str, Any], rows: list[dict[str, Any]], *more: str) -> Any:
    """Run a task of our own on `rows`; returns what it found for each of them, in order, and its mean measures."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    (folder / "ours.yaml").write_text(json.dumps({"task": "ours", "test_split": "test", **data, **task}))
    route = "/v1/chat/completions" if kind == "local-chat-completions" else "/v1/completions"
    where = f"model={NAME},base_url={url}{route},num_concurrent=2,tokenizer={MODEL}"
    words = ["--model", kind, "--model_args", where, "--tasks", "ours", "--include_path", folder, *more]
    words += ["--output_path", folder / "out", "--log_samples"]
    run("lm_eval", "run", *words, env={"HF_HOME": str(folder / "home")}, cwd=folder)
    [samples] = (folder / "out").rglob("samples_*.jsonl")
    [results] = (folder / "out").rglob("results_*.json")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return found, json.loads(results.read_text())["results"]["ours"]


@pytest.mark.parametrize("kind", ["local-chat-completions", "local-completions"])
def test_lm_eval_generates(demo_server: str, tmp_path: Path, kind: str) -> None:
    """What the built-in model says is no matter, that all is answered is."""
    task = {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    rows = [{"question": "What is it?", "answer": "a"}, {"question": "Say hello.", "answer": "b"}]
    more = ["--apply_chat_template"] if kind == "local-chat-completions" else []
    samples, _ = lm_eval(tmp_path, demo_server, kind, task, rows, *more)
    answers = [sample["resps"][0][0] for sample in samples]
    assert len(answers) == 2 and all(answers), answers


QUESTIONS = [
    ("A large red circle on a blue", ["background", "dog"]), ("A small green square on", ["apples", "a white one"]),
    ("What is the image", ["content?", "because"]), ("The circle is", ["red", "blue", "seven"]),
    ("There are three", ["circles", "circle"]), ("One red square and two blue", ["circles", "squares", "sky"]),
    ("The left one is", ["yellow", "on a background"]), ("How many", ["circles are there?", "is red"]),
    ("It moves from left to", ["right", "left", "green"]), ("Hello", [", how are you?", "!", " circle"]),
]  # fmt: skip


def test_lm_eval_chooses(tmp_path: Path) -> None:
    """A task of multiple choice: the log-likelihoods of all choices are transformers', and so is the accuracy."""
    task = {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    rows = [{"question": question, "choices": choices, "answer": 0} for question, choices in QUESTIONS]
    with LocalServer([str(MODEL), "--served-model-name", NAME, "--dtype", "float32"], choose_port(0)) as server:
        samples, means = lm_eval(tmp_path, server.url, "local-completions", task, rows)
    likelihoods = reference()
    num_right = 0
    assert len(samples) == len(QUESTIONS) == 10
    for (question, choices), sample in zip(QUESTIONS, samples, strict=True):
        expected = [likelihoods(question, f" {choice}") for choice in choices]
        found = [(float(logprob), is_greedy in (True, "True")) for [(logprob, is_greedy)] in sample["resps"]]
        assert [logprob for logprob, _ in found] == pytest.approx([sum(each) for each, _ in expected], abs=1e-3)
        assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
        sums = [sum(each) for each, _ in expected]
        num_right += sums.index(max(sums)) == 0
    assert means["acc,none"] == num_right / 10 > 0


def reference() -> Callable[[str, str], tuple[list[float], bool]]:
    """A function that gives transformers' log-probabilities of a continuation's tokens, and whether it is greedy."""
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()

    @torch.inference_mode()
    def likelihoods(context: str, continuation: str) -> tuple[list[float], bool]:
        ids, begins = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
        logprobs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)[:-1]
        told = [float(logprobs[place - 1, ids[place]]) for place in range(begins, len(ids))]
        is_greedy = all(int(logprobs[place - 1].argmax()) == ids[place] for place in range(begins, len(ids)))
        return told, is_greedy

    return likelihoods


def test_guidellm(demo_server: str, tmp_path: Path) -> None:
    """A benchmark of pictures that it makes itself; every request must succeed."""
    report = tmp_path / "report.json"
    words = ["--backend", f"kind=openai_http,target={demo_server},model={NAME}", "--profile", "kind=synchronous"]
    words += ["--constraint", "kind=max_requests,count=4", "--data", "kind=synthetic_image,width=64,height=64"]
    words += ["--tokenizer", f"kind=huggingface_auto,model={MODEL}", "--output", f"kind=json,path={report}"]
    run("guidellm", "run", *words, "--disable-console-interactive", cwd=tmp_path)
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    assert benchmark["metrics"]["request_totals"] == {"successful": 4, "errored": 0, "incomplete": 0, "total": 4}
    assert all(request["prompt_tokens"] > 8 for request in benchmark["requests"]["successful"])
