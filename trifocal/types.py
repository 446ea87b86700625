"""The vocabulary of Trifocal: the data that crosses a boundary between its parts, and its errors.

Everything here is plain data (dataclasses over numpy and built-ins): no torch, no behaviour beyond validation.
A request is, in turn, a `Prompt` with `SamplingParams`, a row in a `StepPlan`, a row in a `StepResult`,
a `TokenOutput` and finally a stream of `Delta`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Modality = Literal["image", "video"]
FinishReason = Literal["stop", "length", "abort", "error"]


# --------------------------------------------------------------------------------------------- errors


class TrifocalError(Exception):
    """Base of every error that Trifocal raises on purpose."""


class ConfigError(TrifocalError):
    """A flag, an environment variable or a checkpoint folder that cannot be used; the command line exits with 2."""


class NotAvailableYetError(ConfigError):
    """A known option whose feature is not built yet: refused, never ignored in silence."""

    def __init__(self, what: str) -> None:
        super().__init__(f"not available yet: {what}")


class RequestError(TrifocalError):
    """A request that is refused; nothing else is disturbed by it.

    `param` names the offending field as the client wrote it, `status` is the HTTP status, `code` a stable word.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


class EngineDeadError(TrifocalError):
    """The engine process is gone; nothing can be generated any more."""


# --------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True, slots=True)
class Span:
    """The stretch of prompt positions that one media item occupies.

    `is_embed[i]` says whether position `offset + i` takes an embedding of the item; `None` means all of them do.
    Positions that do not (row separators of some families) are ordinary tokens.
    """

    offset: int
    length: int
    is_embed: tuple[bool, ...] | None = None

    @property
    def end(self) -> int:
        """First position after the span."""
        return self.offset + self.length

    @property
    def num_embeds(self) -> int:
        """Number of positions that take an embedding."""
        return self.length if self.is_embed is None else sum(self.is_embed)


@dataclass(frozen=True, slots=True)
class SharedPixels:
    """Where the pixels of a media item lie in shared memory: a file of the media store, mapped by the engine."""

    path: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class MediaItem:
    """One preprocessed picture or clip.

    `content_hash` (16 bytes) covers everything that the item contributes to the model: pixels, grid, timing and the
    processor options behind them, so equal hashes may share embeddings and KV blocks. `pixels` is uint8 in the
    family's own patch layout (normalisation happens next to the vision tower), `grid` the family's own description
    of that layout (Qwen2.5-VL: pixels [t*h*w, 3*2*14*14], grid (t, h, w) in patches).
    """

    modality: Modality
    content_hash: bytes
    span: Span
    grid: tuple[int, ...]
    pixels: NDArray[np.uint8] | SharedPixels


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What the engine needs of a prompt: tokens with expanded placeholders, media in order of their spans, positions.

    `positions` is int64 [rows, num_tokens] (3 rows for M-RoPE), or `None` where position equals index.
    A token generated at sequence index `i` has position `i + position_delta` on every row.
    `cache_salt` separates tenants: prompts with different salts share no cached block. `stop_token_ids` are ids by
    which the model's family ends an answer, beside those that the checkpoint's configuration names.
    """

    token_ids: list[int]
    media: tuple[MediaItem, ...] = ()
    positions: NDArray[np.int64] | None = None
    position_delta: int = 0
    text: str | None = None
    cache_salt: str | None = None
    stop_token_ids: tuple[int, ...] = ()


# --------------------------------------------------------------------------------------------- sampling

_MAX_LOGIT_BIAS = 100.0
_SEED_RANGE = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop; names, defaults and meaning as in vLLM.

    Raises `RequestError` with the name of the offending field. `max_tokens=None` means the rest of the context.
    `logprobs=k` returns the k most likely tokens at each position beside the chosen one (raw model log-probabilities,
    before penalties and temperature).
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
        _require_int("n", self.n, 1, None)
        for name in ("presence_penalty", "frequency_penalty"):
            _require_number(name, getattr(self, name), -2.0, 2.0)
        _require_number("repetition_penalty", self.repetition_penalty, 0.0, None, open_low=True)
        _require_number("temperature", self.temperature, 0.0, None)
        _require_number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _require_number("min_p", self.min_p, 0.0, 1.0)
        _require_int("top_k", self.top_k, -1, None)
        if self.seed is not None:
            _require_int("seed", self.seed, -_SEED_RANGE, _SEED_RANGE - 1)
        if self.max_tokens is not None:
            _require_int("max_tokens", self.max_tokens, 1, None)
        _require_int("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.logprobs is not None:
            _require_int("logprobs", self.logprobs, 0, None)
        for text in self.stop or []:
            if not isinstance(text, str) or not text:
                raise RequestError("stop must be a non-empty string or a list of them", param="stop")
        for token_id in self.stop_token_ids or []:
            _require_int("stop_token_ids", token_id, 0, None)
        for token_id, bias in (self.logit_bias or {}).items():
            _require_int("logit_bias", token_id, 0, None)
            _require_number("logit_bias", bias, -_MAX_LOGIT_BIAS, _MAX_LOGIT_BIAS)

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


def _require_int(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name} must be an integer {bounds}, got {value!r}", param=name)


def _require_number(name: str, value: object, low: float, high: float | None, *, open_low: bool = False) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if ok:
        assert isinstance(value, int | float)
        ok = (value > low if open_low else value >= low) and (high is None or value <= high)
    if not ok:
        bracket = "(" if open_low else "["
        bounds = f"in {bracket}{low:g}, {'inf)' if high is None else f'{high:g}]'}"
        raise RequestError(f"{name} must be a number {bounds}, got {value!r}", param=name)


# --------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as the engine takes it: one id, one output sequence (n > 1 is expanded before).

    `output_token_ids` are tokens that an engine generated before it died: the sequence goes on behind them, and for
    penalties, min_tokens, max_tokens and the seed they count as the output that they are.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()  # ids that end the sequence: params' own and, unless ignored, eos
    seed: int = 0  # never None here: a request without one gets a random seed on admission, so a replay is exact
    output_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduledNew:
    """A sequence that starts, or starts again after preemption: everything a worker must know about it."""

    request: Request
    output_token_ids: list[int]  # tokens generated before


@dataclass(frozen=True, slots=True)
class ScheduledSeq:
    """Work on one sequence in one step: compute tokens `start .. start + num_tokens` of it.

    `new_block_ids` extends the worker's block table (it replaces it for a sequence in `StepPlan.new`).
    """

    request_id: str
    start: int
    num_tokens: int
    new_block_ids: list[int]
    samples: bool  # the last token's logits choose the next token


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Run the vision tower on one media item; the embeddings are kept under its hash."""

    request_id: str
    media_index: int
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the workers do in one step, as a diff against what they already hold."""

    step_id: int
    scheduled: list[ScheduledSeq]
    new: list[ScheduledNew] = field(default_factory=list)
    encode: list[EncodeJob] = field(default_factory=list)
    free_embeds: list[bytes] = field(default_factory=list)  # hashes dropped from the encoder cache
    finished: list[str] = field(default_factory=list)  # request ids to forget (finished, aborted or preempted)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(seq.num_tokens for seq in self.scheduled)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one output position: the chosen token first, then the most likely ones in falling order."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of the chosen token, 1 = most likely


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced: the sampled token of each sequence that had `samples` set, and requests that failed.

    `failed_media` are the hashes of media without which positions of this step were computed: what they hold is wrong.
    `encode_s` are the seconds that its media spent in the vision tower.
    """

    step_id: int
    token_ids: dict[str, int]
    logprobs: dict[str, TokenLogprobs] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failed_media: frozenset[bytes] = frozenset()
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """New tokens of one request, from the engine to whoever turns them into text."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id, or the message of an error
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """State of the engine after a step; counters are totals since the engine process started.

    The last two are counted by the server, since it did.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_used: int = 0  # blocks referenced by sequences (cached but unreferenced ones count as free)
    kv_blocks_total: int = 0
    encoder_bytes_pinned: int = 0  # embeddings that a sequence still needs
    encoder_bytes_cached: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0
    num_media_encoded: int = 0  # media items that went through the vision tower
    media_encode_s: float = 0.0  # seconds they took together
    encoder_hits: int = 0  # media items served from the encoder cache
    num_restarts: int = 0  # engine processes that replaced a dead one
    num_replays: int = 0  # requests that a new engine took over from a dead one


# --------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one choice of an answer. `index` is the choice (0 .. n-1).

    `token_ids` and `logprobs` belong to `text` as far as text is held back for stop strings: they come with the text
    that completes them. `finish_reason` is set on the last delta of a choice.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One choice of a finished (or running) request, as vLLM's class of the same name."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestOutput:
    """What `LLM.generate` returns for one prompt, as vLLM's class of the same name."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
