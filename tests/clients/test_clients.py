"""Clients that others wrote, each as its users run it, against a real server on the built-in model.

`make test-clients` installs them into an environment of their own (`.cache/clients`) and runs this file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("kind", ["local-chat-completions", "local-completions"])
def test_lm_eval_generates(demo_server: str, tmp_path: Path, kind: str) -> None:
    """A task of its own on a local file. What the built-in model says to it is no matter, that all is answered is."""
    rows = [{"question": "What is it?", "answer": "a"}, {"question": "Say hello.", "answer": "b"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "two_questions", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "two_questions.yaml").write_text(json.dumps(task))
    is_chat = kind == "local-chat-completions"
    route = "/v1/chat/completions" if is_chat else "/v1/completions"
    where = f"model={NAME},base_url={demo_server}{route},num_concurrent=2,tokenizer={MODEL}"
    words = ["--model", kind, "--model_args", where, "--tasks", "two_questions", "--include_path", tmp_path]
    words += ["--output_path", tmp_path / "out", "--log_samples", *(["--apply_chat_template"] if is_chat else [])]
    run("lm_eval", "run", *words, env={"HF_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    [samples] = (tmp_path / "out").rglob("samples_*.jsonl")
    answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert len(answers) == 2 and all(answers), answers


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
