"""The demo: every sample question is answered rightly, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import httpx
import pytest

from tests.api.helpers import free_port
from trifocal.demo.run import is_right, load_samples


@pytest.mark.parametrize(
    ("answer", "right"), [("Red.", True), (" red", True), ("A red circle.", False), ("", False), ("Red. Red.", False)]
)
def test_is_right(answer: str, right: bool) -> None:
    assert is_right(answer, "Red.") is right


def test_samples_cover_what_the_demo_promises() -> None:
    samples = load_samples()
    kinds = {(len(sample.media), part["type"]) for sample in samples for part in sample.messages[0]["content"][:1]}
    assert {(1, "image_url"), (2, "image_url"), (1, "video_url")} <= kinds


@pytest.mark.slow
def test_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trifocal", "demo", "--once"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(load_samples())} of {len(load_samples())} answers right." in done.stdout
    assert "✗" not in done.stdout and "Traceback" not in done.stderr


def test_it_stays_until_ctrl_c() -> None:
    port = str(free_port())  # 8000 may be another test's, before or after
    words = [sys.executable, "-u", "-m", "trifocal", "demo", "--port", port]
    # Whatever started us in the background of a shell may have made us deaf to Ctrl-C, and children inherit that.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=hear) as demo:
        assert demo.stdout is not None
        url, written = "", ""
        for line in demo.stdout:
            written += line
            url = line.split()[-1] if line.startswith("Ready") else url
            if "Any client" in line:
                break
        assert f"{len(load_samples())} of {len(load_samples())} answers right." in written and "✗" not in written
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200
        os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", trust_env=False)
