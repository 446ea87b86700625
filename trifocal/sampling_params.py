"""`SamplingParams`: how tokens are chosen and when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trifocal.errors import RequestError


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be: of `kind`, from `low` (itself excluded if `is_open`) to `high`, which counts."""

    kind: type[int] | type[float]
    low: float
    high: float | None = None
    is_open: bool = False

    def check(self, name: str, value: object) -> None:
        """Raise `RequestError` that blames `name`."""
        ok = isinstance(value, int if self.kind is int else int | float) and not isinstance(value, bool)
        if ok:
            assert isinstance(value, int | float)
            is_low = value <= self.low if self.is_open else value < self.low
            is_high = value > self.high if self.high is not None else value == math.inf
            ok = not (is_low or is_high or value != value)  # NaN compares with nothing
        if not ok:
            raise RequestError(f"{name} must be {self}, got {value!r}", param=name)

    def __str__(self) -> str:
        if self.kind is int:
            bounds = f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"
            return f"an integer {bounds}"
        bracket, end = "(" if self.is_open else "[", "inf)" if self.high is None else f"{self.high:g}]"
        return f"a number in {bracket}{self.low:g}, {end}"


SAMPLING_BOUNDS: Mapping[str, Bounds] = {
    "n": Bounds(int, 1),
    "presence_penalty": Bounds(float, -2.0, 2.0),
    "frequency_penalty": Bounds(float, -2.0, 2.0),
    "repetition_penalty": Bounds(float, 0.0, is_open=True),
    "temperature": Bounds(float, 0.0),
    "top_p": Bounds(float, 0.0, 1.0, is_open=True),
    "min_p": Bounds(float, 0.0, 1.0),
    "top_k": Bounds(int, -1),
    "seed": Bounds(int, -(1 << 63), (1 << 63) - 1),
    "max_tokens": Bounds(int, 1),
    "min_tokens": Bounds(int, 0),
    "logprobs": Bounds(int, -1),
}
"""Numbers of `SamplingParams`; the server's OpenAPI document tells them, too."""
TOKEN_ID_BOUNDS = Bounds(int, 0)
BIAS_BOUNDS = Bounds(float, -100.0, 100.0)
_MAY_BE_NONE = ("seed", "max_tokens", "logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop; names, defaults and meaning as in vLLM.

    Raises `RequestError` with the name of the offending field. `max_tokens=None` means the rest of the context.
    `logprobs=k` returns the k most likely tokens at each position beside the chosen one (raw model log-probabilities,
    before penalties and temperature); -1 all of the vocabulary.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", list(self.stop_token_ids or []))
        if self.top_k == 0:  # vLLM and Hugging Face write "all tokens" as 0 as well
            object.__setattr__(self, "top_k", -1)
        self._verify()

    def _verify(self) -> None:
        for name, bounds in SAMPLING_BOUNDS.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                bounds.check(name, value)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            Bounds(int, 0, self.max_tokens).check("min_tokens", self.min_tokens)
        for text in self.stop or []:
            if not isinstance(text, str) or not text:
                raise RequestError("stop must be a non-empty string or a list of them", param="stop")
        for token_id in self.stop_token_ids or []:
            TOKEN_ID_BOUNDS.check("stop_token_ids", token_id)
        for token_id, bias in (self.logit_bias or {}).items():
            TOKEN_ID_BOUNDS.check("logit_bias", token_id)
            BIAS_BOUNDS.check("logit_bias", bias)

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as the list it was normalised to."""
        assert isinstance(self.stop, list)
        return self.stop

    @property
    def is_greedy(self) -> bool:
        """Temperatures this low are arg-max, as in vLLM."""
        return self.temperature < 1e-5

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with `changes`, verified again."""
        return replace(self, **changes)
