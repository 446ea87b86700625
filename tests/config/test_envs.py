"""Environment variables: both prefixes, the right one wins, bad values are named."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trifocal
from tests import tiny
from trifocal.cli import main
from trifocal.config import envs
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine import messages
from trifocal.errors import ConfigError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for env in envs.ALL:
        monkeypatch.delenv(f"TRIFOCAL_{env.name}", raising=False)
        monkeypatch.delenv(f"VLLM_{env.name}", raising=False)
    yield


def test_defaults_when_unset() -> None:
    for env in envs.ALL:
        assert env.get() == env.default, env.name


def test_vllm_name_is_read_and_ours_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "100")
    assert envs.IMAGE_FETCH_TIMEOUT.get() == 100.0
    monkeypatch.setenv("TRIFOCAL_IMAGE_FETCH_TIMEOUT", "7.5")
    assert envs.IMAGE_FETCH_TIMEOUT.get() == 7.5


def test_the_exports_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (
        "VLLM_IMAGE_FETCH_TIMEOUT=100", "VLLM_ENGINE_ITERATION_TIMEOUT_S=600", "VLLM_USE_V1=1",
        "VLLM_PLUGINS=ascend_vllm", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", "VLLM_WORKER_MULTIPROC_METHOD=spawn",
    ):  # fmt: skip
        monkeypatch.setenv(*line.split("="))
    assert envs.ENGINE_ITERATION_TIMEOUT_S.get() == 600.0
    assert envs.PLUGINS.get() == ["ascend_vllm"]
    assert envs.ALLOW_LONG_MAX_MODEL_LEN.get() is True
    assert envs.WORKER_MULTIPROC_METHOD.get() == "spawn"
    assert envs.USE_V1.get() is True


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("VLLM_IMAGE_FETCH_TIMEOUT", "abc", "expected a number above 0"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "0", "expected a number above 0"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "-1", "expected a number above 0"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "nan", "expected a number above 0"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "inf", "expected a number above 0"),
        ("TRIFOCAL_VIDEO_FETCH_TIMEOUT", "soon", "expected a number above 0"),
        ("VLLM_CPU_KVCACHE_SPACE", "abc", "expected a number above 0"),
        ("VLLM_CPU_KVCACHE_SPACE", "1e300", "expected at most"),
        ("VLLM_MEDIA_LOADING_THREAD_COUNT", "0", "expected an integer of at least 1"),
        ("VLLM_MEDIA_LOADING_THREAD_COUNT", "many", "expected an integer of at least 1"),
        ("TRIFOCAL_ENGINE_MAX_RESTARTS", "-1", "expected an integer of at least 0"),
        ("VLLM_USE_V1", "0", "there is|one engine"),
        ("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "maybe", "expected 0 or 1"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "thread", "expected one of spawn, fork"),
        ("TRIFOCAL_LOGGING_LEVEL", "loud", "expected one of"),
    ],
)
def test_a_bad_value_is_named(name: str, text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    env = next(env for env in envs.ALL if name.endswith(f"_{env.name}"))
    with pytest.raises(ConfigError, match=f"{name}=.*({reason})"):
        env.get()
    with pytest.raises(ConfigError, match=f"{name}=.*({reason})"):
        envs.check()


def test_a_value_that_is_not_in_force_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "CRITICAL")  # vLLM's own value stays in the file of exports
    monkeypatch.setenv("TRIFOCAL_LOGGING_LEVEL", "error")
    envs.check()


def test_every_command_checks_them_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "0")
    for command in (
        "models",
        "serve no/such/folder",
        "chat --url http://127.0.0.1:9",
        "bench throughput no/such/folder",
    ):
        assert main(command.split()) == 2
        told = capsys.readouterr().err
        assert "environment variable VLLM_IMAGE_FETCH_TIMEOUT='0'" in told and told.count("\n") == 1


def test_unread_variables_are_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(envs, "_told", set())
    for name in [name for name in os.environ if name.startswith(("TRIFOCAL_", "VLLM_"))]:
        monkeypatch.delenv(name)
    assert envs.notes() == []
    for name in (
        "TRIFOCAL_LOGING_LEVEL",
        "TRIFOCAL_XYZZY",
        "VLLM_IMAGE_FETCH_TIMEOUTS",
        "TRIFOCAL_IMAGE_TIMEOUT",
        "VLLM_AUDIO_FETCH_TIMEOUT",
        "VLLM_B",
        "VLLM_A",
    ):
        monkeypatch.setenv(name, "1")
    assert main(["models", "--json"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "note: environment variable TRIFOCAL_IMAGE_TIMEOUT is unknown; did you mean TRIFOCAL_IMAGE_FETCH_TIMEOUT?",
        "note: environment variable TRIFOCAL_LOGING_LEVEL is unknown; did you mean TRIFOCAL_LOGGING_LEVEL?",
        "note: environment variable TRIFOCAL_XYZZY is unknown",
        "note: environment variable VLLM_IMAGE_FETCH_TIMEOUTS is unknown; did you mean VLLM_IMAGE_FETCH_TIMEOUT?",
        "note: environment variables without effect here: VLLM_A, VLLM_AUDIO_FETCH_TIMEOUT, VLLM_B",
    ]
    assert envs.notes() == []


def test_variables_are_read_at_the_start_and_handed_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the modules that `envs` lists read one later, and a configuration does not change with the environment."""
    readers = {"log": "LOGGING_LEVEL", "kernels/cpu/library": "CPU_KERNELS", "cli/serve": "API_KEY"}
    root = Path(trifocal.__file__).parent
    for path in root.rglob("*.py"):
        name = str(path.relative_to(root).with_suffix(""))
        if not name.startswith("config/"):
            found = re.findall(r"(?:envs\.(\w+)\.get|(from_env))\(", path.read_text(encoding="utf-8"))
            assert {first or last for first, last in found} == ({readers[name]} if name in readers else set()), name
    monkeypatch.setenv("TRIFOCAL_ENGINE_MAX_RESTARTS", "3")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.5")
    monkeypatch.setenv("TRIFOCAL_PACKED_CACHE", "1")
    config = resolve(EngineArgs(model=str(folder), device="cpu"))
    sent = messages.encode(config)
    monkeypatch.setenv("TRIFOCAL_ENGINE_MAX_RESTARTS", "4")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    assert messages.decode_config(sent) == config
    assert config.supervision.max_restarts == 3 and config.model.packed_cache
    platform = config.parallel.platform
    assert (platform.cpu_kvcache_variable, platform.cpu_kvcache_space) == ("VLLM_CPU_KVCACHE_SPACE", 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model")


def test_names_are_unique() -> None:
    names = [env.name for env in envs.ALL]
    assert len(names) == len(set(names)) and names
