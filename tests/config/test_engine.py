"""`resolve`: every refusal names the flag; what is "auto" is decided; the reference page matches the code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.logged import messages
from tools import configuration
from trifocal import LLM, SamplingParams
from trifocal.config.cache import BLOCK_SIZES
from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.config.vllm_options import OPTIONS, PYTHON_OPTIONS
from trifocal.errors import ConfigError, NotAvailableYetError, errors_in_keywords

LIMIT = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder as far as `resolve` reads it: JSON alone."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "torch_dtype": "bfloat16",
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 400, "max_position_embeddings": LIMIT, "eos_token_id": 2,
        "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    generation = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 1.05, "max_new_tokens": 99, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def resolved(folder: Path, **changes: Any) -> EngineConfig:
    return resolve(EngineArgs(model=str(folder), device="cpu", **changes))


def test_type_of_the_kv_cache(folder: Path) -> None:
    assert resolved(folder).cache.kv_cache_dtype == "bfloat16"
    assert resolved(folder, dtype="float32").cache.kv_cache_dtype == "float32"
    assert resolved(folder, kv_cache_dtype="int8").cache.kv_cache_dtype == "int8"
    for name in ("fp8", "fp8_e4m3", "fp8_e5m2", "int4"):
        with pytest.raises(ConfigError, match=f"--kv-cache-dtype must be auto or int8 .*, got '{name}'"):
            resolved(folder, kv_cache_dtype=name)


def test_auto_is_decided(folder: Path) -> None:
    config = resolved(folder)
    assert (config.model.dtype, config.cache.block_size, config.scheduling.max_model_len) == ("bfloat16", 16, LIMIT)
    assert (config.parallel.distributed_executor_backend, config.parallel.device, config.model.tokenizer) == (
        "uni",
        "cpu",
        str(folder),
    )
    assert config.scheduling.max_num_batched_tokens == 512 and not config.scheduling.is_max_model_len_explicit
    assert config.media.limit_mm_per_prompt == {"image": 999, "video": 999}
    limits = resolved(folder, limit_mm_per_prompt={"image": 2, "audio": 0}).media.limit_mm_per_prompt
    assert limits == {"image": 2, "video": 999}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs must be at least 1"),
        ({"max_model_len": LIMIT + 1}, f"--max-model-len {LIMIT + 1} is above the model's own limit of {LIMIT}"),
        ({"max_model_len": 0}, "--max-model-len must be at least 1"),
        ({"max_num_batched_tokens": 0}, "--max-num-batched-tokens must be at least 1"),
        (
            {"max_num_batched_tokens": 1024, "enable_chunked_prefill": False},
            f"--max-num-batched-tokens 1024 is below --max-model-len {LIMIT}",
        ),
        ({"gpu_memory_utilization": 0.0}, "--gpu-memory-utilization"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization"),
        ({"block_size": 17}, "--block-size must be one of 16, 32, 64, 128"),
        ({"block_size": 0}, "--block-size must be one of 16, 32, 64, 128, got 0"),
        ({"encoder_cache_gib": 1e300}, "--encoder-cache-gib must be at most"),
        ({"mm_processor_cache_gb": 1e300}, "--mm-processor-cache-gb must be at most"),
        ({"decode_memory_gib": 1e300}, "--decode-memory-gib must be at most"),
        ({"seed": 1 << 64}, "seed must be an integer of at most 64 bits"),
        ({"tokenizer": "no/such"}, "--tokenizer 'no/such' is not a folder"),
        ({"generation_config": "no/such"}, "--generation-config 'no/such' is not a folder"),
        ({"distributed_executor_backend": "threads"}, "--distributed-executor-backend must be uni, got 'threads'"),
        ({"encoder_cache_gib": float("nan")}, "--encoder-cache-gib must be above 0"),
        ({"num_gpu_blocks_override": 0}, "--num-gpu-blocks-override must be at least 1"),
        ({"override_generation_config": {"temperature": "hot"}}, "--override-generation-config: temperature must be"),
        ({"override_generation_config": {"max_new_tokens": 0}}, "--override-generation-config: max_new_tokens must be"),
        ({"optimization_level": 4}, "--optimization-level must be 0, 1, 2 or 3, got 4"),
        ({"compilation_config": {"cudagraph_capture_size": [1]}}, "unknown key 'cudagraph_capture_size'; did you mean"),
        ({"compilation_config": {"cudagraph_mode": "SOME"}}, "cudagraph_mode must be one of NONE, .*, got 'SOME'"),
        ({"cudagraph_capture_sizes": [0]}, "cudagraph_capture_sizes must be a list of integers above 0"),
        (
            {"cudagraph_capture_sizes": [1], "compilation_config": {"cudagraph_capture_sizes": [2]}},
            "--cudagraph-capture-sizes .* are not the same",
        ),
        ({"dtype": "int3"}, "--dtype must be auto"),
        ({"load_format": "pickle"}, "--load-format must be"),
        ({"encoder_cache_gib": 0.0}, "--encoder-cache-gib must be above 0"),
        ({"limit_mm_per_prompt": {"audio": 1}}, "--limit-mm-per-prompt: unknown modality 'audio'"),
        ({"limit_mm_per_prompt": {"image": -1}}, "--limit-mm-per-prompt: image must be"),
        ({"limit_mm_per_prompt": {"image": True}}, "--limit-mm-per-prompt: image must be"),
        ({"quantization": "gptq"}, "--quantization must be awq, int8, int4, got 'gptq'"),
        ({"quantization": "awq"}, "--quantization awq: the checkpoint is not quantized"),
        ({"max_logprobs": -2}, "--max-logprobs must be at least -1"),
        ({"tensor_parallel_size": 0}, "--tensor-parallel-size must be at least 1"),
    ],
)
def test_refusals_name_the_flag(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(folder, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"distributed_executor_backend": "mp"},
        {"distributed_executor_backend": "ray"},
    ],
)
def test_what_is_not_built_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(NotAvailableYetError, match="not available yet: --"):
        resolved(folder, **changes)


def test_the_seed_rule_holds_without_chunked_prefill(folder: Path) -> None:
    assert resolved(folder, enable_chunked_prefill=False).scheduling.max_num_batched_tokens == LIMIT
    assert resolved(folder, max_num_batched_tokens=64).scheduling.max_num_batched_tokens == 64


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_block_sizes(folder: Path, block_size: int) -> None:
    assert resolved(folder, block_size=block_size).cache.block_size == block_size


def test_a_long_context_may_be_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert resolved(folder, max_model_len=2 * LIMIT).scheduling.max_model_len == 2 * LIMIT


def test_the_old_engine_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V1", "0")
    with pytest.raises(ConfigError, match="VLLM_USE_V1"):
        resolved(folder)


def test_sampling_defaults(folder: Path) -> None:
    from_file = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 1.05, "max_tokens": 99}
    assert resolved(folder).model.default_sampling == from_file
    assert resolved(folder, generation_config="vllm").model.default_sampling == {}
    overridden = resolved(folder, override_generation_config={"temperature": 0.5}).model.default_sampling
    assert overridden == {**from_file, "temperature": 0.5}
    assert resolved(folder, max_model_len=64).model.default_sampling["max_tokens"] == 64, "what nobody asked for fits"


def test_bad_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        resolved(folder / "nothing")
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        resolved(folder)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(ConfigError):
        resolved(folder)


def test_a_bad_file_of_sampling_defaults_is_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 2}))
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p must be"):
        resolved(folder)
    assert resolved(folder, generation_config="vllm").model.default_sampling == {}
    assert resolved(folder, override_generation_config={"top_p": 0.5}).model.default_sampling == {"top_p": 0.5}


def test_captured_sizes(folder: Path) -> None:
    def sizes(**changes: Any) -> tuple[int, ...]:
        return resolved(folder, **changes).parallel.capture_sizes

    assert sizes() == sizes(optimization_level=3) == sizes(compilation_config={"cudagraph_mode": "full"}) != ()
    assert sizes(cudagraph_capture_sizes=[1, 2, 4], max_cudagraph_capture_size=2) == (1, 2)
    assert sizes(compilation_config={"cudagraph_capture_sizes": [1, 2], "max_cudagraph_capture_size": 0}) == ()
    for off in ({"cudagraph_mode": "NONE"}, {"cudagraph_mode": 0}, {"use_cudagraph": False}):
        assert sizes(compilation_config=off) == ()
    assert sizes(optimization_level=0) == sizes(enforce_eager=True) == ()


def test_keys_of_the_compiler_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved(folder, compilation_config={"mode": 3, "pass_config": {}, "cudagraph_capture_sizes": [1]})
    assert messages(caplog) == [
        "compilation_config: these keys have no effect, as there is no torch.compile: mode, pass_config"
    ]


def test_media_limits_in_the_longer_form(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = {"image": {"count": 2}, "video": {"num_frames": 8, "width": 64}, "audio": {"count": 0}}
    assert resolved(folder, limit_mm_per_prompt=limits).media.limit_mm_per_prompt == {"image": 2, "video": 999}
    assert messages(caplog) == [
        "limit_mm_per_prompt: these keys have no effect, as memory is measured in another way: "
        "video.num_frames, video.width"
    ]
    for wrong, message in (
        ({"counts": 2}, "image: unknown key 'counts'; known: count"),
        ({"count": -1}, "image must be"),
    ):
        with pytest.raises(ConfigError, match=f"--limit-mm-per-prompt: {message}"):
            resolved(folder, limit_mm_per_prompt={"image": wrong})


def test_keys_of_overridden_generation_defaults(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for key, hint in (("temperatur", "did you mean 'temperature'"), ("num_beams", "known: repetition_penalty, temp")):
        with pytest.raises(ConfigError, match=f"^--override-generation-config: unknown key '{key}'; {hint}"):
            resolved(folder, override_generation_config={key: 1})
    config = resolved(folder, override_generation_config={"do_sample": False, "top_k": 3})
    assert config.model.default_sampling["top_k"] == 3
    assert messages(caplog) == ["do_sample in the generation config has no effect: a temperature of 0 is greedy"]


def test_an_empty_model_is_no_folder() -> None:
    with pytest.raises(ConfigError, match="^model '' is not a folder; give the path"), errors_in_keywords():
        resolve(EngineArgs.from_kwargs(model=""))


def test_bad_variables_stop_it_by_their_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "abc")
    with pytest.raises(ConfigError, match="VLLM_IMAGE_FETCH_TIMEOUT='abc': expected a number above 0"):
        resolved(folder)


def test_unknown_keywords_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown argument 'max_modellen'; did you mean 'max_model_len'"):
        EngineArgs.from_kwargs(model="x", max_modellen=3)
    with pytest.raises(ConfigError, match="unknown argument 'enable_loras'; did you mean 'enable_lora'"):
        EngineArgs.from_kwargs(model="x", enable_loras=3)
    with pytest.raises(ConfigError, match="no model is given"):
        EngineArgs.from_kwargs(model=None)


def test_keywords_without_effect_are_those_of_the_command_line(caplog: pytest.LogCaptureFixture) -> None:
    told, neutral = {}, {}
    for option in (*OPTIONS, *PYTHON_OPTIONS):
        neutral[option.name] = option.neutral[0] if option.neutral else None
        if option.neutral is None:
            told[option.name] = f"{option.name} has no effect: {option.why}"
            continue
        with pytest.raises(NotAvailableYetError, match=f"not available yet: {option.name}="):
            EngineArgs.from_kwargs(model="x", **{option.name: "something"})
    assert EngineArgs.from_kwargs(model="x", **neutral) == EngineArgs(model="x") and not messages(caplog)
    given = {name: "something" for name in told}
    assert EngineArgs.from_kwargs(model="x", swap_space=8, **given) == EngineArgs(model="x", swap_space=8)
    assert [message.split()[0] for message in messages(caplog)] == ["swap_space", *told]
    assert set(told.values()) <= set(messages(caplog))


def test_what_vllms_programs_pass(caplog: pytest.LogCaptureFixture) -> None:
    args = EngineArgs.from_kwargs(
        model=Path("x"), disable_log_stats=True, enable_lora=False, speculative_config=None, hf_overrides={},
        task="generate", cpu_offload_gb=0, data_parallel_size=1, tokenizer_mode="auto", enable_prefix_caching=None,
        seed=None, mm_processor_kwargs=None, max_model_len=-1, compilation_config=3,
        offload_group_size=0, offload_num_in_group=1, offload_params=None,
    )  # fmt: skip
    assert args == EngineArgs(model="x", compilation_config={"mode": 3})
    with pytest.raises(NotAvailableYetError, match="not available yet: enable_lora=True: there are no LoRA adapters"):
        EngineArgs.from_kwargs(model="x", enable_lora=True)
    defaults = {**asdict(EngineArgs(model="x")), **asdict(args)}
    assert EngineArgs.from_kwargs(**defaults) == args
    assert not any("swap_space" in message for message in messages(caplog))
    with pytest.raises(ConfigError, match="max_num_seqs must be an integer, got '8'"):
        EngineArgs.from_kwargs(model="x", max_num_seqs="8")


def test_errors_name_an_argument_as_it_was_written(folder: Path) -> None:
    given = {"model": str(folder), "device": "cpu", "max_num_batched_tokens": 9, "enable_chunked_prefill": False}
    with pytest.raises(ConfigError) as by_flag:
        resolve(EngineArgs(**given))
    with pytest.raises(ConfigError) as by_keyword, errors_in_keywords():
        resolve(EngineArgs.from_kwargs(**given))
    assert str(by_flag.value) == (
        f"--max-num-batched-tokens 9 is below --max-model-len {LIMIT}: raise it, or leave chunked prefill on "
        "(--enable-chunked-prefill)"
    )
    assert str(by_keyword.value) == (
        f"max_num_batched_tokens 9 is below max_model_len {LIMIT}: raise it, or leave chunked prefill on "
        "(enable_chunked_prefill)"
    )
    with pytest.raises(NotAvailableYetError, match="^not available yet: tensor_parallel_size x pipeline_parallel_size"):
        LLM(str(folder), tensor_parallel_size=2)


def test_llm_takes_them_and_says_what_is_wrong_before_it_loads(tmp_path: Path) -> None:
    for given, message in (
        ({"max_num_seqs": "8"}, "max_num_seqs must be an integer, got '8'"),
        ({"enable_lora": True}, "not available yet: enable_lora=True"),
        ({"max_modellen": 8}, "unknown argument 'max_modellen'; did you mean 'max_model_len'"),
    ):
        with pytest.raises(ConfigError, match=message):
            LLM("no/such/folder", **given)
    neutral = {"disable_log_stats": True, "enable_lora": False, "speculative_config": None}
    with LLM(
        str(tiny.write_checkpoint(tmp_path)), kv_cache_memory_bytes=1 << 22, dtype=torch.float32, **neutral
    ) as llm:
        [answer] = llm.generate("a", SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
    assert len(answer.outputs[0].token_ids) == 2


def test_every_field_has_a_group_and_help() -> None:
    for item in EngineArgs.__dataclass_fields__.values():
        assert item.metadata["group"] and item.metadata["help"]


def test_the_reference_page_is_current() -> None:
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(), (
        "docs/configuration.md is out of date: python -m tools.configuration"
    )
