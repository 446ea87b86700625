"""`SamplingParams`: how tokens are chosen and when to stop."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Protocol

from trifocal.errors import RequestError


class Kind(Protocol):
    """What a field may hold."""

    def check(self, name: str, value: object) -> None:
        """Raise `RequestError` that blames `name`."""


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
            raise wrong(name, str(self), value)

    def __str__(self) -> str:
        if self.kind is int:
            bounds = f"of at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"
            return f"an integer {bounds}"
        bracket, end = "(" if self.is_open else "[", "inf)" if self.high is None else f"{self.high:g}]"
        return f"a number in {bracket}{self.low:g}, {end}"


class Flag:
    """True or False; 0 and 1 are taken for them, as in requests."""

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, bool) and not (type(value) is int and value in (0, 1)):
            raise wrong(name, "True or False", value)


class Text:
    """A string that is not empty."""

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, str) or not value:
            raise wrong(name, "a non-empty string", value)


class Word:
    """A string with more in it than spaces."""

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, str) or not value.strip():
            raise wrong(name, "a string that is not blank", value)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list, tuple or set whose items are of a kind."""

    item: Kind
    what: str

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, list | tuple | set | frozenset):
            raise wrong(name, f"a list of {self.what}", value)
        for index, item in enumerate(value):
            self.item.check(f"{name}[{index}]", item)


class Some(ListOf):
    """A list that is not empty."""

    def check(self, name: str, value: object) -> None:
        super().check(name, value)
        if not value:
            raise wrong(name, f"a list of {self.what} that is not empty", value)


class Texts(ListOf):
    """One text, or a list of them."""

    def check(self, name: str, value: object) -> None:
        if isinstance(value, str):
            self.item.check(name, value)
        else:
            super().check(name, value)


@dataclass(frozen=True, slots=True)
class DictOf:
    """A dict whose keys and values are of two kinds."""

    key: Kind
    value: Kind
    what: str

    def check(self, name: str, value: object) -> None:
        if not isinstance(value, Mapping):
            raise wrong(name, f"a dict of {self.what}", value)
        for key, item in value.items():
            self.key.check(f"{name}: each key", key)
            self.value.check(f"{name}[{key!r}]", item)


def wrong(name: str, expected: str, value: object) -> RequestError:
    """The error for a field, or for `name[…]` in it, that holds something else."""
    return RequestError(f"{name} must be {expected}, got {value!r:.80}", param=re.split(r"\W", name)[0])


SAMPLING_BOUNDS: Mapping[str, Bounds] = {
    "n": Bounds(int, 1),
    "presence_penalty": Bounds(float, -2.0, 2.0),
    "frequency_penalty": Bounds(float, -2.0, 2.0),
    "repetition_penalty": Bounds(float, 1e-20),  # a logit divided by less may be more than a float32 holds
    "temperature": Bounds(float, 0.0),
    "top_p": Bounds(float, 0.0, 1.0, is_open=True),
    "min_p": Bounds(float, 0.0, 1.0),
    "top_k": Bounds(int, -1),
    "seed": Bounds(int, -(1 << 63), (1 << 63) - 1),
    "max_tokens": Bounds(int, 0),
    "min_tokens": Bounds(int, 0),
    "logprobs": Bounds(int, -1),
    "prompt_logprobs": Bounds(int, -1),
}
"""Numbers of `SamplingParams`; the server's OpenAPI document tells them, too."""
TOKEN_ID_BOUNDS = Bounds(int, 0)
BIAS_BOUNDS = Bounds(float, -100.0, 100.0)
_MAY_BE_NONE = (
    "seed", "max_tokens", "logprobs", "prompt_logprobs", "stop", "stop_token_ids", "logit_bias", "allowed_token_ids",
    "bad_words",
)  # fmt: skip
_KINDS: Mapping[str, Kind] = {
    **SAMPLING_BOUNDS,
    "stop": Texts(Text(), "non-empty strings, or one such string"),
    "stop_token_ids": ListOf(TOKEN_ID_BOUNDS, "token ids"),
    "logit_bias": DictOf(TOKEN_ID_BOUNDS, BIAS_BOUNDS, "numbers by token id"),
    "allowed_token_ids": Some(TOKEN_ID_BOUNDS, "token ids"),
    "bad_words": ListOf(Word(), "words"),
    "ignore_eos": Flag(),
    "skip_special_tokens": Flag(),
    "include_stop_str_in_output": Flag(),
}
# Fields of vLLM's class that are not done here, with the values beside None that ask for what happens anyway.
_UNAVAILABLE: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "detokenize": (True,),
    "early_stopping": (False,),
    "extra_args": ({},),
    "flat_logprobs": (False,),
    "guided_decoding": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "output_kind": (0, 1, 2),  # `LLM.generate` returns whole answers, there and here
    "repetition_detection": (),
    "skip_clone": (False, True),  # how vLLM copies the object
    "skip_reading_prefix_cache": (False,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
# Names that other APIs have for fields of ours.
_ELSEWHERE = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens", "top_logprobs": "logprobs"}
_PLAIN = (bool, int, float, str, list, tuple, dict)


def refuse_unavailable(name: str, value: object, neutral: tuple[Any, ...]) -> None:
    """Raise `RequestError` unless a field that is not done here is None or one of these values."""
    value = getattr(value, "value", value)  # of an enumeration
    if value is None or (isinstance(value, _PLAIN) and value in neutral):
        return
    works = " or ".join(map(repr, neutral or (None,)))
    raise RequestError(
        f"not available yet: {name}={value!r:.80} ({works} works)", param=name, code="unsupported_parameter"
    )


class _Forgiving(type):
    """Makes objects of what users of vLLM write: see `SamplingParams`."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        if args:
            raise RequestError(
                f"{cls.__name__} takes keyword arguments only: {cls.__name__}(temperature=0.5, max_tokens=64)"
            )
        return super().__call__(**{name: value for name, value in given.items() if not _is_neutral(name, value)})


def _is_neutral(name: str, value: object) -> bool:
    """Whether it asks for what happens anyway. Raises `RequestError` for what cannot be had, and for unknown names."""
    if name in _KINDS:
        return False
    if name in _UNAVAILABLE:
        refuse_unavailable(name, value, _UNAVAILABLE[name])
    elif name == "stream":
        if value:
            raise RequestError(
                'stream: LLM returns whole answers; only the server streams, by "stream": true in a request',
                param="stream",
            )
    else:
        near = _ELSEWHERE.get(name) or next(iter(get_close_matches(name, [*_KINDS, *_UNAVAILABLE], n=1)), None)
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(_KINDS)}"
        raise RequestError(f"unknown sampling parameter {name!r}; {hint}", param=name)
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(metaclass=_Forgiving):
    """How tokens are chosen and when to stop; names, defaults and meaning as in vLLM.

    Fields of vLLM's that are not done here may be given as None or as the value that asks for what happens anyway;
    they are not kept. Raises `RequestError` with the name of the offending field, an unknown one included.
    `max_tokens=None` means the rest of the context; 0, which goes with `prompt_logprobs` alone, generates nothing.
    `logprobs=k` returns the k most likely tokens at each position beside the chosen one (raw model log-probabilities,
    before penalties and temperature); -1 all of the vocabulary. `prompt_logprobs=k` does the same for the prompt.
    `allowed_token_ids` are the only tokens that may be generated. `bad_words` may not be generated, neither at the
    beginning of a word nor, as they are written, inside one.
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
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        self._verify()
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", list(self.stop_token_ids or []))
        object.__setattr__(self, "bad_words", list(self.bad_words or []))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", list(self.allowed_token_ids))
        for name, kind in _KINDS.items():
            if isinstance(kind, Flag):
                object.__setattr__(self, name, bool(getattr(self, name)))
        if self.top_k == 0:  # vLLM and Hugging Face write "all tokens" as 0 as well
            object.__setattr__(self, "top_k", -1)

    def _verify(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None or item.name not in _MAY_BE_NONE:
                _KINDS[item.name].check(item.name, value)
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise RequestError(
                "max_tokens must be at least 1, got 0; 0 is for prompt_logprobs without an answer",
                param="max_tokens",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            Bounds(int, 0, self.max_tokens).check("min_tokens", self.min_tokens)

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

    def clone(self) -> SamplingParams:
        """A copy that shares nothing with this one."""
        return copy.deepcopy(self)
