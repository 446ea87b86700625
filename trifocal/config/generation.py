"""Sampling defaults of the server, by vLLM's rule: fields of generation_config.json, then the overrides."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trifocal.config.arguments import folder
from trifocal.config.vllm_options import GENERATION_KEYS_WITHOUT_EFFECT
from trifocal.errors import ArgumentError, ConfigError, RequestError
from trifocal.log import get_logger
from trifocal.model_spec import read_json
from trifocal.sampling_params import SamplingParams

logger = get_logger(__name__)
_KEYS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "max_new_tokens")


def default_sampling(own: dict[str, Any], source: str, overrides: dict[str, Any], max_model_len: int) -> dict[str, Any]:
    """Keywords of `SamplingParams`. `own` is the checkpoint's file, `source` is `--generation-config`.

    Raises `ConfigError`.
    """
    if source in ("vllm", "trifocal"):
        own = {}
    elif source != "auto":
        own = read_json(Path(folder("generation_config", source)) / "generation_config.json", required=True)
    _check_keys(overrides)
    merged = {**own, **overrides}
    found = {name: merged[name] for name in _KEYS if merged.get(name) is not None}
    if "max_new_tokens" in found:
        found["max_tokens"] = found.pop("max_new_tokens")
    try:
        SamplingParams(**found)
    except RequestError as error:
        blamed = "max_new_tokens" if error.param == "max_tokens" else str(error.param)
        reason = error.message.replace("max_tokens", "max_new_tokens")
        if blamed in overrides:
            raise ArgumentError("{override_generation_config}: {}", reason) from None
        raise ConfigError(f"generation_config.json: {reason}") from None
    if "max_tokens" in found:  # a request that asks for more than the context is refused; a default is fitted to it
        found["max_tokens"] = min(found["max_tokens"], max_model_len)
    return found


def _check_keys(overrides: dict[str, Any]) -> None:
    for key in overrides:
        if key not in _KEYS and key not in GENERATION_KEYS_WITHOUT_EFFECT:
            near = get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}"
            raise ArgumentError("{override_generation_config}: unknown key {!r}; {}", key, hint)
    for key, why in GENERATION_KEYS_WITHOUT_EFFECT.items():
        if key in overrides:
            logger.warning("%s in the generation config has no effect: %s", key, why)
