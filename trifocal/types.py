"""The vocabulary of Trifocal: the data that crosses a boundary between its parts.

Everything here is plain data (dataclasses over numpy and built-ins): no torch, no behaviour beyond validation.
A request is, in turn, a `Prompt` with `SamplingParams`, a row in a `StepPlan`, a row in a `StepResult`,
a `TokenOutput` and finally a stream of `Delta`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic, time
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trifocal.sampling_params import SamplingParams

Modality = Literal["image", "video"]
FinishReason = Literal["stop", "length", "abort", "error"]
STEP_TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # of `EngineStats.steps_by_tokens`


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
        return self.length if self.is_embed is None else sum(self.is_embed)


@dataclass(frozen=True, slots=True)
class SharedPixels:
    """Where the pixels of a media item lie in shared memory: a file of the media store, mapped by the engine."""

    path: str
    shape: tuple[int, ...]
    dtype: str


if TYPE_CHECKING:
    Pixels = NDArray[np.uint8] | SharedPixels
else:

    @runtime_checkable
    class Pixels(Protocol):
        """The same as one type: decoders of messages take no union of classes, and make `SharedPixels` of it."""

        shape: tuple[int, ...]


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
    pixels: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What the engine needs of a prompt: tokens with expanded placeholders, media in order of their spans, positions.

    `positions` is int64 [rows, num_tokens] (3 rows for M-RoPE), or `None` where position equals index.
    A token generated at sequence index `i` has position `i + position_delta` on every row.
    `cache_salt` separates tenants: prompts with different salts share no cached block. `cache_key_extra` does the same
    for what changes keys and values beside tokens and media, e.g. the name of an adapter. `stop_token_ids` are ids by
    which the model's family ends an answer, beside those that the checkpoint's configuration names.
    """

    token_ids: list[int]
    media: tuple[MediaItem, ...] = ()
    positions: NDArray[np.int64] | None = None
    position_delta: int = 0
    text: str | None = None
    cache_salt: str | None = None
    stop_token_ids: tuple[int, ...] = ()
    cache_key_extra: bytes = b""


# --------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as the engine takes it: one id, one output sequence (n > 1 is expanded before).

    `output_token_ids` are tokens that an engine generated before it died: the sequence goes on behind them, and for
    penalties, min_tokens, max_tokens and the seed they count as the output that they are.
    `prompt_logprobs` is what `SamplingParams` says for one choice of a request; the others have the same prompt.
    `bad_word_ids` are the tokens of its `bad_words`, as they begin a word and as they go on inside one.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()  # ids that end the sequence: params' own and, unless ignored, eos
    seed: int = 0  # never None here: a request without one gets a random seed on admission, so a replay is exact
    output_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    bad_word_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduledNew:
    """A sequence that starts, or starts again after preemption: everything a worker must know about it."""

    request: Request
    output_token_ids: list[int]  # tokens generated before
    is_long: bool = False  # longer than what longrope's short factors serve


@dataclass(frozen=True, slots=True)
class ScheduledSeq:
    """Work on one sequence in one step: compute positions `start .. start + num_tokens` of it.

    The last `num_sampled_rows` positions choose tokens: none where more of the prompt is to come, one, or with drafts
    `1 + max_drafts`. So many tokens the worker may guess behind those it knows; it computes them in the same step and
    keeps those that it would have chosen. If it guesses less, it computes less.

    A step is planned before it is known how many drafts of the steps in flight were kept: `start` then counts all of
    them. The worker begins at the first position that it has not computed, which is `start` or comes before it.

    `new_block_ids` are the blocks behind the one that position `start - 1` lies in. What a worker's block table has
    there is given back. For a sequence in `StepPlan.new` they are the whole table.
    """

    request_id: str
    start: int
    num_tokens: int  # drafts included
    new_block_ids: list[int]
    num_sampled_rows: int = 0
    max_drafts: int = 0


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Run the vision tower on one media item; the embeddings are kept under its hash."""

    request_id: str
    media_index: int
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the workers do in one step, as a diff against what they already hold.

    Without anything `scheduled` it tells them what to forget, when no other step is going to.
    """

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
    """Log-probabilities at one position: its token first, then the most likely ones in falling order."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of the chosen token, 1 = most likely


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced, by request id.

    `token_ids` has for each sequence with sampled rows the token that was chosen, behind the drafts that were kept;
    `logprobs` has one entry for each of these tokens. `prompt_logprobs` comes whole, with the step that computes the
    end of the prompt (see `TokenOutput`). `pooled` are hidden states of requests that ask for those in place of tokens.
    `errors` are requests that failed.
    `failed_media` are the hashes of media without which positions of this step were computed: what they hold is wrong.
    `encode_s` are the seconds that its media spent in the vision tower. `num_sequences` and `num_embeds` are what a
    worker holds after it: states of sequences, and media whose embeddings it keeps.
    """

    step_id: int
    token_ids: dict[str, list[int]]
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[TokenLogprobs | None]] = field(default_factory=dict)
    pooled: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failed_media: frozenset[bytes] = frozenset()
    encode_s: float = 0.0
    num_sequences: int = 0
    num_embeds: int = 0


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """New tokens of one request, from the engine to the code that turns them into text.

    `prompt_logprobs` come once, with the first tokens, for a request that asks for them: one entry for each token of
    the prompt, given those before it. There is none (None) for the first, and for those that stand for media.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id, or the message of an error
    num_cached_tokens: int = 0
    scheduled_at: float = 0.0  # when its first step was planned, by `time.perf_counter`, which all processes share
    num_preemptions: int = 0  # so far
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the workers found room for."""

    num_blocks: int
    max_model_len: int
    bytes_per_embed: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """State of the engine after a step; counters are totals since the engine started, or started over.

    `steps_by_tokens[i]` counts the steps of at most `STEP_TOKEN_BOUNDS[i]` tokens that are in no bucket before; the
    last one has those above all bounds. The last two are counted by the server, or by `LLM`, since that did.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_used: int = 0  # blocks referenced by sequences (cached but unreferenced ones count as free)
    kv_blocks_total: int = 0
    encoder_bytes_pinned: int = 0  # embeddings that a sequence still needs
    encoder_bytes_cached: int = 0
    encoder_items: int = 0  # media whose embeddings the encoder cache counts on
    worker_sequences: int = 0  # states that a worker holds, as its last step left them
    worker_embeds: int = 0  # media whose embeddings it holds: `encoder_items`, once it has been told everything
    mapped_media: int = 0  # pixels of requests that the engine process has mapped
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0
    num_media_encoded: int = 0  # media items that went through the vision tower
    media_encode_s: float = 0.0  # seconds they took together
    encoder_hits: int = 0  # media items served from the encoder cache
    num_step_tokens: int = 0  # tokens computed, in all steps
    steps_by_tokens: tuple[int, ...] = (0,) * (len(STEP_TOKEN_BOUNDS) + 1)
    num_restarts: int = 0  # engine processes that replaced a dead one; in `LLM`: steps that raised
    num_replays: int = 0  # requests that a new engine took over from a dead one


# --------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one choice of an answer. `index` is the choice (0 .. n-1).

    `token_ids` and `logprobs` belong to `text` as far as text is held back for stop strings: they come with the text
    that completes them. `finish_reason` is set on the last delta of a choice. `prompt_logprobs` is set on the first
    delta of choice 0 alone, if the request asks for them; they are those of `TokenOutput`.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    scheduled_at: float = 0.0  # as in `TokenOutput`
    num_preemptions: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None


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
class RequestMetrics:
    """When the work on a request was done: the fields of vLLM's `RequestStateStats`, and as properties the names of its
    older `RequestMetrics`.

    `arrival_time` and what else ends in `_time` are seconds since 1970. What ends in `_ts` are seconds of the monotonic
    clock, to be compared with each other alone. 0.0 or None: it has not happened. Work on a prompt begins with its
    preprocessing, which is before `queued_ts`. With n > 1 the first and the last token are those of any choice.
    """

    arrival_time: float = field(default_factory=time)
    arrival_ts: float = field(default_factory=monotonic)
    queued_ts: float = 0.0  # the engine has it
    scheduled_ts: float = 0.0  # the first step that computes some of it begins
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    num_generation_tokens: int = 0

    @property
    def first_token_latency(self) -> float:
        """Seconds from the arrival to the first token."""
        return max(self.first_token_ts - self.arrival_ts, 0.0)

    @property
    def first_scheduled_time(self) -> float | None:
        """When its first step began."""
        return self._since_1970(self.scheduled_ts)

    @property
    def first_token_time(self) -> float | None:
        """When its first token was known."""
        return self._since_1970(self.first_token_ts)

    @property
    def last_token_time(self) -> float | None:
        """When its newest token was known."""
        return self._since_1970(self.last_token_ts)

    @property
    def finished_time(self) -> float | None:
        """When it ended, which is with its last token."""
        return self.last_token_time

    @property
    def time_in_queue(self) -> float | None:
        """Seconds from the arrival to the first step, preprocessing included."""
        return self.scheduled_ts - self.arrival_ts if self.scheduled_ts else None

    def _since_1970(self, ts: float) -> float | None:
        return self.arrival_time + ts - self.arrival_ts if ts else None


@dataclass(slots=True)
class RequestOutput:
    """What `LLM.generate` returns for one prompt, as vLLM's class of the same name.

    `prompt_logprobs` are those of `TokenOutput`; None unless they were asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics, compare=False)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
