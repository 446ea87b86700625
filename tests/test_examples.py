"""The example scripts, run as their users run them; those that import torch mostly in this process, which has it."""

from __future__ import annotations

import json
import logging
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests import tiny_internvl, tiny_minicpmv
from tests.tiny_text import Text
from trifocal.demo.run import MODEL, NAME, SAMPLES

EXAMPLES = Path(__file__).parents[1] / "examples"
OFFLINE = "offline_inference/vision_language.py"


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLES / script), *words], capture_output=True, text=True, timeout=120)


@dataclass
class Done:
    """How a script ended, by the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs vision_language.py as `python` does."""
    # An earlier test may have given the logger of this process a stream that is closed by now.
    monkeypatch.setattr(logging.getLogger("trifocal"), "handlers", [])
    script = str(EXAMPLES / OFFLINE)

    def run_here(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", [script, *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run_here


def online(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    host, _, port = url.removeprefix("http://").partition(":")
    where = ["--model-path", NAME, "--image-path", str(SAMPLES / "circle.png"), "--docker-ip", host]
    return run("online_serving.py", *where, "--served-port", port, *words)


def test_online_as_in_the_guide(demo_server: str) -> None:
    done = online(demo_server, "--text", "What", "is", "the", "image", "content?")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["choices"][0]["message"]["content"] == "A large red circle on a blue background."
    assert body["usage"]["completion_tokens"] <= 16


def test_online_streams(demo_server: str) -> None:
    for stream in (["--stream"], ["--stream", "1"], ["--stream=true"]):
        done = online(demo_server, *stream, "--text", "What is the image content?")
        assert (done.returncode, done.stdout) == (0, "A large red circle on a blue background.\n")


def test_online_booleans_mean_what_they_say(demo_server: str) -> None:
    done = online(demo_server, "--stream", "False", "--ignore-eos", "true", "--top-p", "0.9", "--text", "What?")
    body = json.loads(done.stdout)
    assert body["usage"]["completion_tokens"] == 16 and body["choices"][0]["finish_reason"] == "length"
    refused = online(demo_server, "--stop-token-ids", "1", "2", "--ignore-eos", "perhaps", "--text", "What?")
    assert refused.returncode == 2 and "expected true or false" in refused.stderr


def test_online_failures(demo_server: str) -> None:
    done = online(demo_server, "--top-p", "1.5", "--text", "What?")
    assert done.returncode == 1 and "top_p" in done.stdout
    assert online("http://127.0.0.1:9", "--text", "What?").returncode == 1
    done = online("http://127.0.0.1:9", "--image-path", "nothing.png", "--text", "What?")
    assert (done.returncode, done.stderr) == (2, "--image-path nothing.png: No such file or directory\n")


def test_offline(offline: Callable[..., Done]) -> None:
    for script, words, answer in (
        (partial(run, OFFLINE), ["--num-prompts", "2"], "A large red circle on a blue background."),
        (offline, ["--modality", "video", "--num-frames", "4", "--text", "What shape is moving?"], "A circle."),
        (offline, ["--image", str(SAMPLES / "heart.png"), "--text", "What shape is this?", "--max-num-seqs=2"],
         "A heart."),
    ):  # fmt: skip
        done = script("--model-type", "qwen2_5_vl", *words)
        assert done.returncode == 0, done.stderr
        assert f"  {answer}" in done.stdout.splitlines()


@pytest.mark.parametrize(("text", "modality"), [("qwen2", "image"), ("internlm2", "video")])
def test_offline_internvl(offline: Callable[..., Done], tmp_path: Path, text: Text, modality: str) -> None:
    folder = str(tiny_internvl.write_checkpoint(tmp_path, text))
    words = ["--model-type", "internvl_chat", "--model", folder, "--modality", modality, "--num-frames", "2"]
    words += ["--num-prompts", "1", "--text", "What is it?", "--max-model-len", "1024"]
    done = offline(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What is it?\n  ")
    assert offline("--model-type", "internvl_chat").returncode == 2  # no folder


@pytest.mark.parametrize("modality", ["image", "video"])
def test_offline_minicpmv(offline: Callable[..., Done], tmp_path: Path, modality: str) -> None:
    folder = str(tiny_minicpmv.write_checkpoint(tmp_path))
    words = ["--model-type", "minicpmv", "--model", folder, "--modality", modality, "--num-frames", "2"]
    done = offline(*words, "--num-prompts", "1", "--text", "What is it?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What is it?\n  ")
    assert offline("--model-type", "minicpmv").returncode == 2  # no such folder


def test_offline_model_type_must_fit_the_folder(offline: Callable[..., Done]) -> None:
    done = offline("--model-type", "internvl_chat", "--model", str(MODEL))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"vision_language.py: --model-type internvl_chat: the model in {MODEL} is a "
        "Qwen2_5_VLForConditionalGeneration; use --model-type qwen2_5_vl\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "nothing.png"], "--image nothing.png: No such file or directory"),
        (["--image", str(EXAMPLES / "online_serving.py")], "cannot identify image file"),
        (["--modality", "video", "--video", "nothing.mp4"], "--video nothing.mp4: No such file or directory"),
        (["--modality", "video", "--video", str(EXAMPLES / "online_serving.py")], "Invalid data found"),
        (
            ["--modality", "video", "--image", "a.png"],
            "--image is not used with --modality video; give --modality image",
        ),
    ],
)
def test_offline_media_that_cannot_be_used(offline: Callable[..., Done], words: list[str], message: str) -> None:
    done = offline(*words)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_offline_mistakes(offline: Callable[..., Done]) -> None:
    for words in (["--image", "nothing.png"], ["--max-model-lenn", "3"], ["--num-prompts", "0"]):
        done = offline(*words)
        assert done.returncode == 2 and "Traceback" not in done.stderr
