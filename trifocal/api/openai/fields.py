"""Fields of request bodies that no route acts on, in the classes of `Scope`, with what each asks for elsewhere.

`docs/request-fields.md` is written from these tables and those of `message_fields`.
"""

from __future__ import annotations

from trifocal.prompt.message_fields import CACHE, LABEL, TOOLS, Refused, Scope

_ROUTING = "one engine serves all requests"
_REASONING = "no model here separates its reasoning"
_NEEDS_TOOLS = "it only matters with tools, which are not available"
_NEEDS_GUIDED = "it only matters with guided decoding, which is not available"
_GUIDED, _SEARCH = "guided decoding", "beam search"
_TRANSFER = "transfer of KV caches between servers"
_FOR_SALT = "separate prefix caches; use cache_salt"
_IN_PROCESSOR = "a limit on tiles outside mm_processor_kwargs; give it there"

BODY = Scope(
    hints={
        "user": LABEL,
        "metadata": LABEL,
        "safety_identifier": LABEL,
        "request_id": "a request's id is taken from the header x-request-id",
        "rid": "a request's id is taken from the header x-request-id",
        "custom_labels": LABEL,
        "store": "nothing is stored",
        "service_tier": "there is one service tier",
        "prediction": "it could only make the answer faster; the text is the same",
        "stream_interval": "a stream sends each piece as soon as it is there; the text is the same",
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
        "truncation_side": "it only matters with truncate_prompt_tokens, which is not available",
        "routed_experts_start_len": "it only matters with return_routed_experts, which is not available",
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
        "no_stop_trim": Refused("stop strings kept in the text; use include_stop_str_in_output"),
        "modalities": Refused("answers other than text", (["text"],)),
        "audio": Refused("audio"),
        "use_audio_in_video": Refused("audio"),
        "web_search_options": Refused("web search", is_empty_neutral=False),  # an empty object asks for it
        "moderation": Refused("moderation"),
        "suffix": Refused("text that follows the completion"),
        "best_of": Refused("choosing the best of several answers"),
        "use_beam_search": Refused(_SEARCH),
        "length_penalty": Refused(_SEARCH, (1,)),
        "early_stopping": Refused(_SEARCH),
        "logprob_token_ids": Refused("log-probabilities of the token ids in a list"),
        "logits_processors": Refused("code sent by the client"),
        "custom_logit_processor": Refused("code sent by the client"),
        "custom_params": Refused("arguments for code sent by the client"),
        "repetition_detection": Refused("stopping when the text repeats itself"),
        "thinking_token_budget": Refused("a limit on tokens of reasoning", (-1,)),
        "truncate_prompt_tokens": Refused("cutting a prompt that is too long"),
        "spaces_between_special_tokens": Refused("special tokens without spaces between them", (True,)),
        "return_token_ids": Refused("token ids in the answer"),
        "return_tokens_as_token_ids": Refused("token ids in the answer"),
        "return_token_offsets": Refused("positions of tokens in the answer"),
        "return_assistant_tokens_mask": Refused("a mask of the assistant's tokens in the answer"),
        "return_prompt_text": Refused("the rendered prompt in the answer"),
        "return_hidden_states": Refused("hidden states in the answer"),
        "return_routed_experts": Refused("the experts of each token in the answer"),
        "return_cached_tokens_details": Refused("details of cached tokens; usage has their number"),
        "chat_template": Refused("a chat template in the request; give it to the server by --chat-template"),
        "documents": Refused("documents for the template; give them in chat_template_kwargs"),
        "task": Refused("a task token at the end of the prompt"),
        "echo": Refused("the last message, repeated before the answer"),
        "add_special_tokens": Refused("special tokens in addition to those of the chat template"),
        "mm_processor_kwargs": Refused("options for media; this route takes none"),
        "max_dynamic_patch": Refused(_IN_PROCESSOR),
        "min_dynamic_patch": Refused(_IN_PROCESSOR),
        "prompt_embeds": Refused("a prompt of embeddings"),
        "priority": Refused("priorities among requests", (0,)),
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
"""Fields of a request's body, on every route. Those that a route acts on are fields of its model in `schemas`."""

COMPANIONS = {"tools": "tool_choice", "functions": "function_call"}
"""A refused field is a hint where its companion says `none`."""

STREAM_OPTIONS = Scope(hints={"include_obfuscation": "streams are not padded"})
