"""The guide's own words, run by a shell: its exports, then its commands, offline and online.

They are copied as they stand. What differs: `vllm` is `trifocal`, paths, addresses and ports are this machine's, and
the exports stand one a line (the guide's page has lost its line breaks).
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.helpers import Server, free_port
from trifocal.demo.run import MODEL, SAMPLES

ROOT = Path(__file__).parents[1]
EXPORTS = """\
export VLLM_IMAGE_FETCH_TIMEOUT=100
export VLLM_ENGINE_ITERATION_TIMEOUT_S=600
# Prioritize setting PYTORCH_NPU_ALLOC_CONF to expandable_segments:True.
# If an error related to virtual GPU memory is reported, set it to expandable_segments:False.
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export VLLM_USE_V1=1
export VLLM_PLUGINS=ascend_vllm
# When the model startup needs to support ultra-large input, VLLM_ALLOW_LONG_MAX_MODEL_LE needs to be set.
# For example, qwen2.5-vl-72B and qwen2.5-vl-32B support 128K long sequences.
export VLLM_ALLOW_LONG_MAX_MODEL_LEN=1
# This parameter needs to be set for offline inference.
export VLLM_WORKER_MULTIPROC_METHOD=spawn
"""
SET = {
    "VLLM_IMAGE_FETCH_TIMEOUT": "100",
    "VLLM_ENGINE_ITERATION_TIMEOUT_S": "600",
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    "VLLM_USE_V1": "1",
    "VLLM_PLUGINS": "ascend_vllm",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
OFFLINE = "python vision_language.py --model-type qwen2_5_vl"
ONLINE = """\
python -m trifocal.entrypoints.openai.api_server --model ${container_model_path} \\
--max-num-seqs=256 \\
--max-model-len=4096 \\
--max-num-batched-tokens=4096 \\
--tensor-parallel-size=1 \\
--block-size=128 \\
--dtype ${dtype} \\
--host=${docker_ip} \\
--port=${port} \\
--gpu-memory-utilization=0.9 \\
--quantization=${quantization} \\
--trust-remote-code \\
--compilation_config '{"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}' \\
--enforce-eager
"""
CLIENT = (
    "python online_serving.py --model-path ${container_model_path} --image-path ${image_path} "
    "--docker-ip ${docker_ip} --served-port ${port} --text What is the image content?"
)
ANSWER = "A large red circle on a blue background."


def shell(folder: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", EXPORTS + command],
        cwd=folder,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def environment(variables: dict[str, str]) -> dict[str, str]:
    """`python` is this Python, and none of the guide's variables is set yet."""
    clean = {name: value for name, value in os.environ.items() if name not in SET}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**clean, "PATH": path, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "0.25", **variables}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The guide's start command; it says nothing of quantization, which is optional there."""
    log, port = tmp_path_factory.mktemp("guide") / "server.log", free_port()
    variables = {
        "container_model_path": str(MODEL), "dtype": "bfloat16", "docker_ip": "127.0.0.1", "port": str(port),
        "quantization": "",
    }  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["bash", "-c", EXPORTS + "exec " + ONLINE],
            env=environment(variables),
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    running = Server(process, port, log)
    try:
        running.wait_ready()
        yield running
    finally:
        status = running.stop()
    assert status == 0, log.read_text()


def test_the_exports_set_every_variable() -> None:
    done = shell(ROOT, "env")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert {name: found.get(name) for name in SET} == SET
    assert EXPORTS.count("export ") == len(SET)


def test_offline() -> None:
    done = shell(ROOT / "examples" / "offline_inference", OFFLINE)
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout
    assert done.stderr.count("ascend_vllm") == 1, "a plug-in that is not installed is told once, and stops nothing"


def test_the_server_names_the_plugin_once(server: Server) -> None:
    log = server.log.read_text()
    assert log.count("ascend_vllm") == 1 and "VLLM_PLUGINS" in log, "the variable's name is the user's"


def test_online(server: Server) -> None:
    done = ask(server, CLIENT)
    body = json.loads(done.stdout)
    assert body["choices"][0]["message"]["content"] == ANSWER and body["usage"]["completion_tokens"] <= 16


def test_the_guide_s_own_client(server: Server) -> None:
    """Its `--text` takes one word, so the question is quoted."""
    quoted = CLIENT.replace("What is the image content?", "'What is the image content?'")
    script = shlex.quote(str(ROOT / "tests" / "guide_client.py"))
    done = ask(server, quoted.replace("online_serving.py", script))
    assert ast.literal_eval(done.stdout)["choices"][0]["message"]["content"] == ANSWER


def ask(server: Server, command: str) -> subprocess.CompletedProcess[str]:
    done = shell(
        ROOT / "examples", command, container_model_path=str(MODEL), image_path=str(SAMPLES / "circle.png"),
        docker_ip="127.0.0.1", port=str(server.port),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done
