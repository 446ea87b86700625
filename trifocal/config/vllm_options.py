"""Options of vLLM that Trifocal does not have: what becomes of those that start scripts and programs carry.

One table for the command line (`cli.ignored`) and for `LLM(...)` (`EngineArgs.from_kwargs`). Where no answer, no limit
and nobody's access depends on an option, it is accepted with a note. One that asks for something that is not here is
refused by its name, unless its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trifocal.errors import NotAvailableYetError

_EMPTY: dict[type, tuple[Any, ...]] = {bool: (False,), str: ("",), dict: ({},), list: ([],)}


@dataclass(frozen=True)
class VllmOption:
    """An option by its name in Python, the type of its value, and why it has no effect or is refused.

    `neutral` are the values that ask for nothing, beside None; None in its place: no value has an effect.
    """

    name: str
    kind: type
    why: str
    neutral: tuple[Any, ...] | None = None

    def note(self, value: Any, written: str, flag: str) -> str | None:
        """What to tell the user who gave `value`, `written` in their words; None if it asks for what is done anyway.

        Raises `NotAvailableYetError` if it asks for something that is not here.
        """
        if value is None or (self.neutral is not None and value in self.neutral):
            return None
        if self.neutral is None:
            return f"{flag} has no effect: {self.why}"
        shown = [str(each) for each in self.neutral if each not in _EMPTY.get(self.kind, ())]
        accepted = f" (accepted: {', '.join(shown)})" if shown else ""
        raise NotAvailableYetError("{}: {}{}", written, self.why, accepted)


def _without_effect(why: str, **kinds: type) -> Iterator[VllmOption]:
    return (VllmOption(name, kind, why) for name, kind in kinds.items())


def _absent(why: str, **kinds: type) -> Iterator[VllmOption]:
    return (VllmOption(name, kind, why, _EMPTY.get(kind, ())) for name, kind in kinds.items())


def _only(name: str, why: str, *neutral: Any) -> VllmOption:
    return VllmOption(name, type(neutral[0]), why, neutral)


OPTIONS = (
    # ------------------------------------------------------------------------------------ accepted without effect
    *_without_effect("requests are not logged", disable_log_requests=bool, enable_log_requests=bool, max_log_len=int),
    *_without_effect(
        "statistics are at /metrics and in LLM.stats()",
        disable_log_stats=bool,
        aggregate_engine_logging=bool,
        show_hidden_metrics_for_version=str,
    ),
    *_without_effect("x-request-id is always sent", enable_request_id_headers=bool),
    *_without_effect("prompt_tokens_details are always sent", enable_prompt_tokens_details=bool),
    *_without_effect("outputs are logged whole", enable_log_deltas=bool),
    *_without_effect("there is no documentation page", enable_offline_docs=bool),
    *_without_effect("the log level decides", log_error_stack=bool),
    *_without_effect(
        "the engine always has a process of its own, and one process takes requests",
        disable_frontend_multiprocessing=bool,
        api_server_count=int,
    ),
    *_without_effect("there is one output path", disable_async_output_proc=bool, multi_step_stream_outputs=bool),
    *_without_effect("there is no custom all-reduce", disable_custom_all_reduce=bool),
    *_without_effect("there is no cascade attention", disable_cascade_attn=bool, disable_cascade_attention=bool),
    *_without_effect(
        "there is one block manager",
        use_v2_block_manager=bool,
        disable_hybrid_kv_cache_manager=bool,
        prefix_caching_hash_algo=str,
    ),
    *_without_effect(
        "there is one scheduler, which lets long prompts take turns",
        async_scheduling=bool,
        max_num_partial_prefills=int,
        max_long_partial_prefills=int,
        long_prefill_token_threshold=int,
        scheduler_delay_factor=float,
        disable_chunked_mm_input=bool,
        scheduler_reserve_full_isl=bool,
    ),
    *_without_effect(
        "steps are captured by their number of tokens, not by the length of sequences", max_seq_len_to_capture=int
    ),
    *_without_effect(
        "weight files are memory-mapped",
        max_parallel_loading_workers=int,
        safetensors_load_strategy=str,
        model_loader_extra_config=dict,
        pt_load_map_location=str,
        use_tqdm_on_load=bool,
        ignore_patterns=list,
    ),
    *_without_effect("nothing is downloaded", download_dir=str, hf_token=str),
    *_without_effect("a local folder has one revision", tokenizer_revision=str, code_revision=str),
    *_without_effect(
        "the platform chooses its own backends",
        attention_backend=str,
        attention_config=dict,
        mm_encoder_attn_backend=str,
        linear_backend=str,
        kernel_config=dict,
        performance_mode=str,
        enable_dbo=bool,
        dbo_decode_token_threshold=int,
        dbo_prefill_token_threshold=int,
    ),
    *_without_effect("int8 caches have a scale for each token", calculate_kv_scales=bool),
    *_without_effect(
        "one device encodes pictures", mm_encoder_tp_mode=str, enable_multimodal_encoder_data_parallel=bool
    ),
    *_without_effect(
        "pixels pass through shared memory; the only cache is that of --mm-processor-cache-gb",
        mm_processor_cache_type=str,
        mm_shm_cache_max_object_size_mb=int,
    ),
    *_without_effect("memory is always measured with pictures", skip_mm_profiling=bool),
    *_without_effect("the tokenizer has threads of its own", tokenizer_pool_size=int, tokenizer_pool_type=str),
    *_without_effect(
        "no model here has experts",
        enable_expert_parallel=bool,
        all2all_backend=str,
        moe_backend=str,
        expert_placement_strategy=str,
        eplb_config=dict,
        num_redundant_experts=int,
    ),
    *_without_effect(
        "no model here is a Mamba", mamba_cache_dtype=str, mamba_ssm_cache_dtype=str, mamba_block_size=int
    ),
    *_without_effect(
        "there is one node and one engine",
        master_addr=str,
        master_port=int,
        data_parallel_address=str,
        data_parallel_rpc_port=int,
        data_parallel_backend=str,
        disable_nccl_for_dp_synchronization=bool,
        ray_workers_use_nsight=bool,
    ),
    *_without_effect(
        "there are no LoRA adapters",
        max_loras=int,
        max_lora_rank=int,
        max_cpu_loras=int,
        lora_dtype=str,
        lora_extra_vocab_size=int,
        fully_sharded_loras=bool,
    ),
    *_without_effect("there are no tool calls", exclude_tools_when_tool_choice_none=bool),
    # ----------------------------------------------------------------------------- refused unless the value is neutral
    _only("task", "models generate text", "generate", "auto"),
    _only("runner", "models generate text", "generate", "auto"),
    _only("convert", "models generate text", "auto", "none"),
    _only("tokenizer_mode", "the files of the tokenizer decide", "auto", "hf"),
    _only("config_format", "only Hugging Face's config.json is read", "auto", "hf"),
    _only("model_impl", "only Trifocal's own models run", "auto", "vllm"),
    _only("scheduling_policy", "requests run in the order of their arrival", "fcfs"),
    _only("preemption_mode", "preempted requests are computed again", "recompute"),
    _only("stream_interval", "every token is sent as it comes", 1),
    _only("num_scheduler_steps", "each step is planned on its own", 1),
    _only("num_lookahead_slots", "there is no speculative decoding", 0),
    _only("cpu_offload_gb", "nothing is offloaded", 0.0),
    _only("kv_offloading_size", "nothing is offloaded", 0.0),
    _only("offload_backend", "nothing is offloaded", "auto"),
    _only("offload_group_size", "nothing is offloaded", 0),
    *_without_effect(
        "nothing is offloaded",
        offload_num_in_group=int,
        offload_prefetch_step=int,
        offload_params=list,
        cpu_offload_params=list,
    ),
    _only("logprobs_mode", "log-probabilities are the model's, before sampling parameters change them", "raw_logprobs"),
    _only("fingerprint_mode", "there is no system_fingerprint", "none"),
    _only("worker_cls", "there is one kind of worker", "auto"),
    _only("video_pruning_rate", "all tokens of a clip are kept", 0.0),
    _only("guided_decoding_backend", "there is no guided decoding", "auto"),
    *_absent("there is no guided decoding", structured_outputs_config=dict),
    *_absent(
        "there are no LoRA adapters", enable_lora=bool, enable_lora_bias=bool, lora_modules=list, default_mm_loras=dict
    ),
    *_absent("there are no prompt adapters", enable_prompt_adapter=bool),
    *_absent(
        "there is no speculative decoding", speculative_config=dict, speculative_model=str, num_speculative_tokens=int
    ),
    *_absent(
        "there are no tool calls",
        enable_auto_tool_choice=bool,
        tool_call_parser=str,
        tool_parser_plugin=str,
        tool_server=str,
    ),
    *_absent(
        "reasoning is not separated from the answer",
        reasoning_parser=str,
        reasoning_parser_plugin=str,
        reasoning_config=dict,
    ),
    *_absent(
        "KV blocks stay in the engine process",
        kv_transfer_config=dict,
        kv_events_config=dict,
        kv_offloading_backend=str,
        ec_transfer_config=dict,
        kv_sharing_fast_prefill=bool,
    ),
    *(
        _only(name, "only one device works", 1)
        for name in (
            "data_parallel_size",
            "data_parallel_size_local",
            "decode_context_parallel_size",
            "prefill_context_parallel_size",
            "nnodes",
        )
    ),
    *(
        _only(name, "only one device works", 0)
        for name in ("data_parallel_rank", "data_parallel_start_rank", "node_rank")
    ),
    *_absent(
        "only one device works",
        data_parallel_hybrid_lb=bool,
        data_parallel_external_lb=bool,
        headless=bool,
        enable_eplb=bool,
    ),
    *_absent(
        "the checkpoint's config.json is read as it is",
        hf_overrides=dict,
        hf_config_path=str,
        rope_scaling=dict,
        rope_theta=float,
        override_attention_dtype=str,
        disable_sliding_window=bool,
        quantization_config=dict,
    ),
    *_absent("models generate text", pooler_config=dict, override_pooler_config=dict),
    *_absent(
        "prompts consist of text or token ids, and media",
        enable_prompt_embeds=bool,
        enable_mm_embeds=bool,
        skip_tokenizer_init=bool,
        tokens_only=bool,
        language_model_only=bool,
    ),
    *_absent("there is no sleep mode", enable_sleep_mode=bool),
    *_absent(
        "the engine and the server load no code of yours",
        middleware=list,
        logits_processors=list,
        logits_processor_pattern=str,
        io_processor_plugin=str,
        scheduler_cls=str,
        worker_extension_cls=str,
    ),
    *_absent("platforms have no settings of their own", additional_config=dict),
    *_absent("chat templates in requests are refused", trust_request_chat_template=bool),
    *_absent("tokens are written as text", return_tokens_as_token_ids=bool),
    *_absent("there is no such route", enable_tokenizer_info_endpoint=bool, enable_server_load_tracking=bool),
    *_absent("answers contain no timings", enable_per_request_metrics=bool),
    *_absent("traces have one span a request", collect_detailed_traces=list),
    *_absent("certificates are read once", enable_ssl_refresh=bool),
    *_absent("the log has one format", log_config_file=str),
    *_absent("there is no profiler", profiler_config=dict),
)
# Of the server's flags, those that are arguments of vLLM's `LLM`, too.
PYTHON_OPTIONS = (
    *_without_effect("outputs of LLM do not name the model", served_model_name=list),
    *_without_effect("LLM reads every file that its caller may read", allowed_local_media_path=str),
    *_absent("LLM fetches media from every host", allowed_media_domains=list),
    *_absent("LLM sends no traces", otlp_traces_endpoint=str),
)
# Fields of EngineArgs that are there for vLLM's sake alone.
UNUSED_FIELDS = {
    "swap_space": "preempted requests are computed again, not swapped",
    "revision": "a local folder has one revision",
}
# Keys of a generation_config.json, found in --override-generation-config too, that no answer depends on.
GENERATION_KEYS_WITHOUT_EFFECT = {
    "do_sample": "a temperature of 0 is greedy",
    **dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id"),
        "it comes from the checkpoint; requests can give stop_token_ids",
    ),
    "transformers_version": "it only names the version that wrote the file",
}
# Keys of --compilation-config that concern torch.compile and CUDA graphs, which are not used.
COMPILATION_KEYS_WITHOUT_EFFECT = frozenset(
    """level mode debug_dump_path cache_dir compile_cache_save_format backend custom_ops splitting_ops
    ir_enable_torch_wrap compile_mm_encoder cudagraph_mm_encoder compile_sizes compile_ranges_split_points
    compile_ranges_endpoints inductor_compile_config inductor_passes use_inductor use_inductor_graph_partition
    pass_config dynamic_shapes_config cudagraph_num_of_warmups cudagraph_copy_inputs cudagraph_specialize_lora
    full_cuda_graph fast_moe_cold_start local_cache_dir""".split()
)
