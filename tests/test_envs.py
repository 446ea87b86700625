"""Environment variables: both prefixes, the right one wins, bad values are named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trifocal import envs
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
        ("VLLM_IMAGE_FETCH_TIMEOUT", "-1", "expected a positive number"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "nan", "expected a positive number"),
        ("VLLM_IMAGE_FETCH_TIMEOUT", "inf", "expected a positive number"),
        ("TRIFOCAL_VIDEO_FETCH_TIMEOUT", "soon", "soon"),
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


def test_names_are_unique() -> None:
    names = [env.name for env in envs.ALL]
    assert len(names) == len(set(names)) and names
