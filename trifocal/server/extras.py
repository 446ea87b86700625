"""Fields of a request that Trifocal does not act on: refused where ignoring them would change the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trifocal.errors import RequestError
from trifocal.log import get_logger

logger = get_logger(__name__)

# Ignored in silence: they do not change the answer.
HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "verbosity", "reasoning_effort", "request_id", "echo_usage", "include_reasoning",
    "guided_decoding_backend", "guided_whitespace_pattern",
})  # fmt: skip

# Refused unless they carry nothing, or one of these values that ask for what happens anyway.
UNAVAILABLE: Mapping[str, tuple[Any, ...]] = {
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "suffix": (),
    "best_of": (),
    "use_beam_search": (),
    "length_penalty": (1,),
    "early_stopping": (),
    "prompt_logprobs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "structural_tag": (),
    "bad_words": (),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "logits_processors": (),
    "return_token_ids": (),
    "return_tokens_as_token_ids": (),
    "spaces_between_special_tokens": (True,),
    "chat_template": (),
    "documents": (),
    "echo": (),
    "prompt_embeds": (),
    "priority": (0,),
    "kv_transfer_params": (),
    "vllm_xargs": (),
}
# A list of tools is harmless where its companion field says to use none of them.
_SWITCHES = {"tools": "tool_choice", "functions": "function_call"}


def extras_schema() -> dict[str, dict[str, Any]]:
    """JSON Schema of these fields: what they may hold without being refused."""
    nothing: list[Any] = [None, False, [], {}, ""]
    return {
        **{name: {"description": "has no effect"} for name in sorted(HARMLESS)},
        **{
            name: {"description": "not available; refused with any other value", "enum": [*nothing, *values]}
            for name, values in UNAVAILABLE.items()
        },
    }


def check_extras(extras: Mapping[str, Any], n: int | None) -> None:
    """Raise `RequestError` for a field that would change the answer; log the names nobody knows, as vLLM does."""
    for name, value in extras.items():
        if name in UNAVAILABLE and not _asks_for_nothing(name, value, extras, n):
            raise RequestError(f"not available yet: {name}", param=name, code="unsupported_parameter")
    unknown = [name[:40] for name in extras if name not in UNAVAILABLE and name not in HARMLESS]
    if unknown:
        logger.warning("fields ignored, nobody knows them: %r", sorted(unknown)[:20])


def _asks_for_nothing(name: str, value: Any, extras: Mapping[str, Any], n: int | None) -> bool:
    if value is None or value is False or value in ([], {}, "") or value in UNAVAILABLE[name]:
        return True
    if name == "best_of":
        return bool(value == (n or 1))
    return name in _SWITCHES and extras.get(_SWITCHES[name]) == "none"
