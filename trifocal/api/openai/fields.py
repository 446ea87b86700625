"""Fields of request bodies that no route acts on, in the classes of `Scope`, with what each asks for elsewhere.

`docs/request-fields.md` is written from these tables and those of `message_fields`.
"""

from __future__ import annotations

from trifocal.prompt.message_fields import CACHE, LABEL, TOOLS, Refused, Scope

_ROUTING = "one engine serves all requests"
_REASONING = "no model here separates its reasoning"
_NEEDS_TOOLS = "means something together with tools only"
_NEEDS_GUIDED = "means something together with guided decoding only"
_GUIDED, _SEARCH = "guided decoding", "beam search"
_TRANSFER = "transfer of caches between servers"
_FOR_SALT = "separate caches; cache_salt does that here"
_IN_PROCESSOR = "a limit on tiles; give it in mm_processor_kwargs"

BODY = Scope(
    hints={
        "user": LABEL,
        "metadata": LABEL,
        "safety_identifier": LABEL,
        "request_id": "ids are taken from the header x-request-id",
        "rid": "ids are taken from the header x-request-id",
        "custom_labels": LABEL,
        "store": "nothing is stored",
        "service_tier": "there is one tier",
        "prediction": "a way to be faster; the answer is the same",
        "stream_interval": "a stream's pieces are as small as they come; the text is the same",
        "prompt_cache_key": CACHE,
        "prompt_cache_retention": CACHE,
        "prompt_cache_options": CACHE,
        "verbosity": "no model here is trained to follow it",
        "reasoning_effort": _REASONING,
        "reasoning": _REASONING,
        "include_reasoning": _REASONING,
        "separate_reasoning": _REASONING,
        "stream_reasoning": _REASONING,
        "parallel_tool_calls": _NEEDS_TOOLS,
        "guided_decoding_backend": _NEEDS_GUIDED,
        "guided_whitespace_pattern": _NEEDS_GUIDED,
        "truncation_side": "means something together with truncate_prompt_tokens only",
        "routed_experts_start_len": "means something together with return_routed_experts only",
        "data_parallel_rank": _ROUTING,
        "routed_dp_rank": _ROUTING,
    },
    refused={
        "tools": Refused(TOOLS),
        "tool_choice": Refused(TOOLS, ("none", "auto")),
        "functions": Refused(TOOLS),
        "function_call": Refused(TOOLS, ("none", "auto")),
        "response_format": Refused(_GUIDED, ({"type": "text"},)),
        "structured_outputs": Refused(_GUIDED),
        "structural_tag": Refused(_GUIDED),
        "guided_json": Refused(_GUIDED),
        "guided_regex": Refused(_GUIDED),
        "guided_choice": Refused(_GUIDED),
        "guided_grammar": Refused(_GUIDED),
        "json_schema": Refused(_GUIDED),
        "regex": Refused(_GUIDED),
        "ebnf": Refused(_GUIDED),
        "stop_regex": Refused("stopping at a pattern; stop takes strings"),
        "no_stop_trim": Refused("stop strings in the text; include_stop_str_in_output does that here"),
        "modalities": Refused("answers other than text", (["text"],)),
        "audio": Refused("audio"),
        "use_audio_in_video": Refused("audio"),
        "web_search_options": Refused("web search", is_empty_neutral=False),  # an empty object asks for it
        "moderation": Refused("moderation"),
        "suffix": Refused("text to end before"),
        "best_of": Refused("choosing the best of several answers"),
        "use_beam_search": Refused(_SEARCH),
        "length_penalty": Refused(_SEARCH, (1,)),
        "early_stopping": Refused(_SEARCH),
        "logprob_token_ids": Refused("log-probabilities of chosen tokens"),
        "logits_processors": Refused("code of the client's"),
        "custom_logit_processor": Refused("code of the client's"),
        "custom_params": Refused("arguments of such code"),
        "repetition_detection": Refused("stopping where text repeats itself"),
        "thinking_token_budget": Refused("a limit on reasoning", (-1,)),
        "truncate_prompt_tokens": Refused("cutting the prompt"),
        "spaces_between_special_tokens": Refused("special tokens without spaces between them", (True,)),
        "return_token_ids": Refused("token ids in the answer"),
        "return_tokens_as_token_ids": Refused("token ids in the answer"),
        "return_token_offsets": Refused("places of tokens in the answer"),
        "return_assistant_tokens_mask": Refused("a mask of tokens in the answer"),
        "return_prompt_text": Refused("the rendered prompt in the answer"),
        "return_hidden_states": Refused("hidden states in the answer"),
        "return_routed_experts": Refused("chosen experts in the answer"),
        "return_cached_tokens_details": Refused("more about cached tokens; usage has their number"),
        "chat_template": Refused("a template of the request's; start the server with --chat-template"),
        "documents": Refused("documents for the template; give them in chat_template_kwargs"),
        "task": Refused("a task token at the end of the prompt"),
        "echo": Refused("the last message before the answer"),
        "add_special_tokens": Refused("special tokens beside those of the chat template"),
        "mm_processor_kwargs": Refused("processing media, which this route takes none of"),
        "max_dynamic_patch": Refused(_IN_PROCESSOR),
        "min_dynamic_patch": Refused(_IN_PROCESSOR),
        "prompt_embeds": Refused("a prompt of embeddings"),
        "priority": Refused("order of requests", (0,)),
        "lora_path": Refused("LoRA"),
        "session_params": Refused("sessions; send the whole conversation"),
        "extra_key": Refused(_FOR_SALT),
        "kv_transfer_params": Refused(_TRANSFER),
        "ec_transfer_params": Refused(_TRANSFER),
        "bootstrap_host": Refused(_TRANSFER),
        "bootstrap_port": Refused(_TRANSFER),
        "bootstrap_room": Refused(_TRANSFER),
        "disagg_prefill_dp_rank": Refused(_TRANSFER),
        "vllm_xargs": Refused("arguments of extensions"),
    },
)
"""A request's own fields, whatever the route; those that a route acts on are fields of its model in `schemas`."""

COMPANIONS = {"tools": "tool_choice", "functions": "function_call"}
"""A refused field is a hint where its companion says `none`."""

STREAM_OPTIONS = Scope(hints={"include_obfuscation": "there is no padding against eavesdroppers"})
