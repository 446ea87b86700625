"""Which device is chosen, plug-ins, and the CPU's memory figures."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests import tiny
from tests.logged import messages
from tests.platforms import toy
from trifocal.attention.registry import ATTENTION
from trifocal.config import devices
from trifocal.config.devices import DEVICES, Device, detect_device, load_plugins
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError
from trifocal.llm import LLM
from trifocal.platforms import cpu, get_platform
from trifocal.platforms.cpu import CpuPlatform
from trifocal.sampling_params import SamplingParams

_GIB = 1 << 30
_EXISTS = os.path.exists
Plugins = dict[str, Callable[[], dict[str, str | Device]]]


def npu_platforms() -> dict[str, str | Device]:
    """What the plug-in of a test brings."""
    target = "trifocal.platforms.cpu:CpuPlatform"
    return {"npu": Device(target, block_size=128, max_num_batched_tokens=4096, awq_dtype="float32")}


def xpu_platforms() -> dict[str, str | Device]:
    """Another's."""
    return {"xpu": "trifocal.platforms.cpu:CpuPlatform"}


def missing_platforms() -> dict[str, str | Device]:
    """That of a plug-in whose device is not there."""
    return {}


def broken_platforms() -> dict[str, str | Device]:
    """That of a plug-in with a fault."""
    raise OSError("no driver")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """Installed plug-ins by name, each with the function that its entry point names."""
    functions: Plugins = {}

    class Point(EntryPoint):
        def load(self) -> Callable[[], dict[str, str | Device]]:
            return functions[self.name]

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [Point(name, f"plugin:{function.__name__}", group) for name, function in functions.items()]

    monkeypatch.setattr(devices, "entry_points", entry_points)
    monkeypatch.setattr(devices, "DEVICES", dict(DEVICES))
    monkeypatch.setattr(devices.os.path, "exists", lambda path: False)
    monkeypatch.delenv("TRIFOCAL_PLUGINS", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    load_plugins.cache_clear()
    devices._warn.cache_clear()
    yield functions
    load_plugins.cache_clear()


def test_auto_without_anything_is_the_cpu(plugins: Plugins) -> None:
    assert detect_device("auto") == "cpu"


def test_auto_takes_an_nvidia_device(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins["ascend_vllm"] = npu_platforms
    monkeypatch.setattr(devices.os.path, "exists", lambda path: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect_device("auto") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_device("auto") == "npu"


def test_a_plugin_brings_devices_of_other_names(plugins: Plugins) -> None:
    plugins["ascend_vllm"] = npu_platforms
    assert detect_device("npu") == detect_device("auto") == "npu"
    assert isinstance(get_platform("npu"), CpuPlatform)
    with pytest.raises(ConfigError, match="'ascend_vllm' is unknown; known: auto, cpu, cuda, npu"):
        detect_device("ascend_vllm")


def test_a_device_says_what_is_best_on_it(plugins: Plugins, tmp_path: Path) -> None:
    """Where the user asks for nothing; a plug-in's is known before torch is."""
    plugins |= {"a": npu_platforms, "b": xpu_platforms}
    folder = tiny.write_checkpoint(tmp_path, dtype="float16")
    wanted = {"npu": (128, 4096), "xpu": (16, 2048), "cpu": (16, 512)}
    for device, expected in wanted.items():
        config = resolve(EngineArgs(model=str(folder), device=device))
        assert (config.cache.block_size, config.scheduling.max_num_batched_tokens) == expected
        asked = resolve(EngineArgs(model=str(folder), device=device, block_size=32, max_num_batched_tokens=64))
        assert (asked.cache.block_size, asked.scheduling.max_num_batched_tokens) == (32, 64)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    (folder / "config.json").write_text(json.dumps(settings))
    dtypes = [resolve(EngineArgs(model=str(folder), device=device)).model.dtype for device in wanted]
    assert dtypes == ["float32", "float16", "bfloat16"]


def test_a_device_brings_its_own_layouts(
    plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """Linear methods, the layout of weights and of the cache, attention: the tiny model answers as on the CPU."""
    plugins["toys"] = lambda: {"toy": "tests.platforms.toy:ToyPlatform"}
    monkeypatch.setattr(os.path, "exists", _EXISTS)  # the CPU's kernels are looked for
    folder = tiny.write_checkpoint(tmp_path)
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=3, ignore_eos=True)
    prompts: list[Any] = [{"prompt": "The quick brown fox"}, {"prompt": "How many?"}]
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    prompts.append({"prompt": f"{vision}What?", "multi_modal_data": {"image": Image.new("RGB", (60, 80), "red")}})

    def answers(device: str, **options: Any) -> list[tuple[Any, list[float]]]:
        with LLM(str(folder), device=device, dtype="float32", max_num_batched_tokens=16, **options) as llm:
            outputs = [out.outputs[0] for out in llm.generate(prompts, params, use_tqdm=False)]
        return [(out.token_ids, [each.logprobs[0] for each in out.logprobs]) for out in outputs]

    ours, cpu_s = answers("toy"), answers("cpu")
    assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in cpu_s]
    for (_, one), (_, other) in zip(ours, cpu_s, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert toy.Turned.num_products > 0 and toy.ToyAttention.num_calls > 0
    caplog.set_level("INFO")
    assert len({tuple(tokens) for tokens, _ in answers("toy", kv_cache_dtype="int8")}) == 3
    said = [line for line in messages(caplog, "INFO") if "attention backend" in line]
    assert said == ["attention backend toy is not used: it keeps no int8; reference serves instead"]


def test_two_devices_are_ambiguous(plugins: Plugins) -> None:
    plugins |= {"a": npu_platforms, "b": xpu_platforms}
    assert detect_device("auto") == "cpu"
    assert detect_device("xpu") == "xpu"


def test_plugins_are_selected_by_the_environment(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins |= {"a": npu_platforms, "b": xpu_platforms}
    monkeypatch.setenv("VLLM_PLUGINS", "b")
    assert detect_device("auto") == "xpu"
    with pytest.raises(ConfigError, match=r"'npu' is unknown; known: auto, cpu, cuda, xpu"):
        detect_device("npu")


def test_no_plugins_may_be_wanted(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins["a"] = npu_platforms
    monkeypatch.setenv("VLLM_PLUGINS", "")
    assert detect_device("auto") == "cpu"


@pytest.mark.parametrize("prefix", ["VLLM", "TRIFOCAL"])
def test_a_plugin_that_is_not_installed_is_a_warning_once(
    prefix: str, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plugins["a"] = npu_platforms
    monkeypatch.setenv(f"{prefix}_PLUGINS", "ascend_vllm,ascend_vllm,a")
    assert [detect_device("auto") for _ in range(3)] == ["npu"] * 3
    get_platform("cpu")  # as the engine's process does
    assert messages(caplog) == [
        f"{prefix}_PLUGINS names 'ascend_vllm', which is not installed; installed platform plug-ins: a"
    ]


def test_a_plugin_that_fails_stops_nobody(plugins: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    plugins |= {"absent": missing_platforms, "broken": broken_platforms, "whole": npu_platforms}
    assert detect_device("auto") == "npu"
    [message] = messages(caplog)
    assert "platform plug-in 'broken' (plugin:broken_platforms) fails: OSError: no driver" in message


def test_an_entry_point_is_loaded_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("p", "tests.platforms.test_platforms:npu_platforms", "trifocal.platforms")
    assert point.load()() == npu_platforms()


def test_default_attention_exists() -> None:
    for name in ("cpu", "cuda"):
        assert get_platform(name).default_attention in ATTENTION


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_cuda_without_a_device_says_so() -> None:
    with pytest.raises(ConfigError, match="--device cuda"):
        get_platform("cuda").device()


def test_memory_is_plausible() -> None:
    memory = get_platform("cpu").memory()
    assert 0 < memory.free <= memory.total < 1 << 50


def test_peak_sees_memory_that_was_freed_again() -> None:
    platform = CpuPlatform()
    for num_bytes in (64 << 20, 32 << 20):  # the second is below the first's peak
        # not a tensor: malloc may serve it from what it kept of an earlier one
        with platform.measure_peak() as peak, mmap.mmap(-1, num_bytes) as block:
            for page in range(0, num_bytes, mmap.PAGESIZE):
                block[page] = 1
        assert 0.8 * num_bytes < peak.num_bytes < 1.5 * num_bytes


def test_kv_cache_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = CpuPlatform()
    monkeypatch.delenv("TRIFOCAL_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(platform, "memory", lambda: cpu.MemoryInfo(free=6 * _GIB, total=10 * _GIB))
    assert platform.kv_cache_bytes(0.6, 0) == 2 * _GIB
    assert platform.kv_cache_bytes(0.6, _GIB) == _GIB
    assert platform.kv_cache_bytes(0.6, 3 * _GIB) == 0
    assert platform.kv_cache_bytes(1.0, 0) == 4 * _GIB  # the cap
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7.5")
    platform = CpuPlatform()
    assert platform.kv_cache_bytes(0.1, _GIB) == int(7.5 * _GIB)


@pytest.mark.parametrize("version", [1, 2])
def test_control_group_limits(tmp_path: Path, version: int) -> None:
    """The limit of the group and of its parent count; file pages that can be dropped do not count as used."""
    top = tmp_path / "memory" if version == 1 else tmp_path
    group = top / "pods" / "a"
    group.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("5:cpu,memory:/pods/a\n1:name=systemd:/x\n" if version == 1 else "0::/pods/a\n")
    limit, used, key = cpu._CGROUP_FILES[2 - version]
    for folder, numbers in ((group, ("1000", "600")), (group.parent, ("5000", "700"))):
        (folder / limit).write_text(numbers[0])
        (folder / used).write_text(numbers[1] + "\n")
    (group / "memory.stat").write_text(f"anon 5\n{key} 150\n")
    (top / limit).write_text("max" if version == 2 else str((1 << 63) - 4096))
    (top / used).write_text("900")
    assert cpu._cgroup_limits(tmp_path, own) == [(1000, 450), (5000, 700)]


def test_tightest_limit_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_cgroup_limits", lambda: [(1000, 450), (5000, 4900)])
    assert CpuPlatform().memory() == cpu.MemoryInfo(free=100, total=1000)
