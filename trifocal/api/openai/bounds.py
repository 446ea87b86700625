"""What the JSON Schema of a body is told beside the types of its fields: bounds of numbers, fields that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trifocal.api.openai.extras import extras_schema
from trifocal.sampling_params import BIAS_BOUNDS, SAMPLING_BOUNDS, TOKEN_ID_BOUNDS, Bounds

# Fields that have the bounds of `SamplingParams`' by other names, or of its items.
_BOUNDS: Mapping[str, Bounds] = {
    **SAMPLING_BOUNDS,
    "max_completion_tokens": SAMPLING_BOUNDS["max_tokens"],
    "top_logprobs": SAMPLING_BOUNDS["logprobs"],
    "stop_token_ids": TOKEN_ID_BOUNDS,
    "allowed_token_ids": TOKEN_ID_BOUNDS,
    "logit_bias": BIAS_BOUNDS,
}


def tell(schema: dict[str, Any]) -> None:
    """Tell a model's schema what `SamplingParams` and `judge` will say."""
    properties = schema["properties"]
    for name, bounds in _BOUNDS.items():
        for kind in properties.get(name, {}).get("anyOf", []):
            _tell_bounds(kind, bounds)
    schema["properties"] = {
        **properties,
        **{name: told for name, told in extras_schema().items() if name not in properties},
    }


def _tell_bounds(schema: dict[str, Any], bounds: Bounds) -> None:
    """Narrow the schema of a number, of a list of them or of an object with them."""
    if schema["type"] in ("array", "object"):
        _tell_bounds(schema["items" if schema["type"] == "array" else "additionalProperties"], bounds)
    elif schema["type"] in ("integer", "number"):
        schema.pop("minimum", None)
        schema["exclusiveMinimum" if bounds.is_open else "minimum"] = bounds.low
        if bounds.high is not None:
            schema.pop("exclusiveMaximum", None)
            schema["maximum"] = bounds.high
