"""A sequence: one request on its way through the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from trifocal.types import FinishReason, MediaItem, Request, ScheduledNew

_ORDER = count()


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's progress. There are no phases: what is left to compute is all that matters.

    `num_computed_tokens` counts positions whose KV is written or will be by the steps already planned, and
    `num_in_flight` the sampled tokens that these steps owe. With drafts both count as if all drafts were kept, until
    the step's result says how many were.
    """

    request: Request
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_in_flight: int = 0
    num_cached_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chained, one per full block of known tokens
    num_published: int = 0  # leading blocks already offered to the prefix cache
    pinned: set[bytes] = field(default_factory=set)  # media whose embeddings this sequence holds in the encoder cache
    is_long: bool = False  # computed with the rotary frequencies of long sequences
    has_started: bool = False  # was ever scheduled; preemption does not change that
    scheduled_at: float = 0.0  # when that was, by `time.perf_counter`
    num_preemptions: int = 0
    is_new_to_workers: bool = True
    order: int = field(default_factory=lambda: next(_ORDER))  # age, kept across preemption

    @property
    def cache_key_extra(self) -> bytes:
        """What keys and values depend on beside tokens, media and salt: the choice of rope, and the prompt's own."""
        return bytes([self.is_long]) + self.request.prompt.cache_key_extra

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def media(self) -> tuple[MediaItem, ...]:
        """Media of the prompt, in the order of their spans."""
        return self.request.prompt.media

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt.token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens whose ids are known: prompt and output."""
        return self.num_prompt_tokens + len(self.output_token_ids)

    @property
    def num_remaining(self) -> int:
        """Positions to compute until the next token can be sampled, tokens in flight included."""
        return self.num_tokens + self.num_in_flight - self.num_computed_tokens

    @property
    def num_positions(self) -> int:
        """Its length as rotary positions count it, tokens in flight included."""
        return self.num_tokens + self.num_in_flight + self.request.prompt.position_delta

    @property
    def is_prompt_only(self) -> bool:
        """Whether it ends with its prompt: no token is sampled."""
        return self.request.params.max_tokens == 0

    @property
    def is_at_limit(self) -> bool:
        """Whether the tokens in flight may be its last."""
        return not self.is_prompt_only and self.num_allowed <= 0

    @property
    def num_allowed(self) -> int:
        """Tokens that may still be sampled, beside those in flight."""
        max_tokens = self.request.params.max_tokens
        assert max_tokens is not None, "`limits.clip_max_tokens` decides on it"
        return max_tokens - len(self.output_token_ids) - self.num_in_flight

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether hidden states of the whole prompt are needed. What they give is sent with the first token."""
        return self.request.prompt_logprobs is not None and not self.output_token_ids

    def token_ids(self, start: int, end: int) -> list[int]:
        """Known token ids `start .. end`."""
        prompt = self.request.prompt.token_ids
        split = len(prompt)
        if end <= split:
            return prompt[start:end]
        return prompt[start:] + self.output_token_ids[max(0, start - split) : end - split]

    def append(self, token_ids: list[int]) -> tuple[int, FinishReason | None, int | None]:
        """Append sampled tokens up to the one that ends it; returns how many, and why and by which token it ends."""
        for num_kept, token_id in enumerate(token_ids, start=1):
            self.output_token_ids.append(token_id)
            params, num_outputs = self.request.params, len(self.output_token_ids)
            if token_id in self.request.stop_token_ids and num_outputs > params.min_tokens:
                return num_kept, "stop", token_id
            if params.max_tokens is not None and num_outputs >= params.max_tokens:
                return num_kept, "length", None
        return len(token_ids), None, None

    def introduce(self) -> ScheduledNew:
        """What workers are told when the sequence starts, or starts again."""
        return ScheduledNew(self.request, list(self.output_token_ids), self.is_long)

    def begin(self, *, is_long: bool) -> None:
        """Nothing is computed, and no step of it in flight: with other frequencies its blocks will be other ones."""
        if is_long != self.is_long:
            self.is_long = is_long
            self.block_hashes = []
