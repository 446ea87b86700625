"""Limits of steps and requests. What can never run is refused before it is queued: what is queued can be finished."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.config.scheduling import SchedulingConfig
from trifocal.errors import RequestError
from trifocal.sampling_params import SamplingParams
from trifocal.types import MediaItem, Prompt


@dataclass(frozen=True, kw_only=True)
class Limits(SchedulingConfig):
    """What bounds a step and a request, decided once the device is known."""

    num_blocks: int
    block_size: int
    bytes_per_embed: int
    encoder_cache_bytes: int
    vocab_size: int
    short_context: int | None = None  # longer sequences take other rotary frequencies (`RopeConfig.short_context`)
    max_drafts: int = 0  # tokens that a worker may guess for a sequence in one step

    def num_bytes(self, item: MediaItem) -> int:
        """Bytes that a media item's embeddings take."""
        return item.span.num_embeds * self.bytes_per_embed

    @property
    def context_len(self) -> int:
        """Tokens that a sequence may have: prompt and answer together."""
        return min(self.max_model_len, self.num_blocks * self.block_size)


def check(prompt: Prompt, params: SamplingParams, limits: Limits) -> None:
    """Raise `RequestError` naming the field for a request that could never run."""
    clip_max_tokens(params, len(prompt.token_ids), limits.context_len)
    _check_logprobs("logprobs", params.logprobs, limits)
    _check_logprobs("prompt_logprobs", params.prompt_logprobs, limits)
    # A stop id outside the vocabulary harms nobody, and clients of vLLM send one family's ids to all its members.
    given = {"prompt": prompt.token_ids, "logit_bias": params.logit_bias, "allowed_token_ids": params.allowed_token_ids}
    for name, ids in given.items():
        unknown = [token_id for token_id in ids or () if not 0 <= token_id < limits.vocab_size]
        if unknown:
            raise RequestError(
                f"{name} has token id {unknown[0]}, but the vocabulary ends at {limits.vocab_size - 1}", param=name
            )
    _check_media(prompt, limits)


def check_max_tokens(params: SamplingParams, context_len: int) -> None:
    """Raise `RequestError` for `max_tokens` that no prompt leaves."""
    if params.max_tokens is not None and params.max_tokens > context_len:
        raise RequestError(
            f"max_tokens={params.max_tokens} cannot be greater than max_model_len={context_len}; ask for fewer",
            param="max_tokens",
        )


def clip_max_tokens(params: SamplingParams, num_prompt: int, context_len: int) -> SamplingParams:
    """`params` with as many `max_tokens` as the prompt leaves of the context, if they ask for more or do not say.

    Raises `RequestError` for a prompt that leaves none (unless 0 are asked for), for `max_tokens` that no prompt
    leaves, and for more `min_tokens` than are left.
    """
    if num_prompt == 0:
        raise RequestError("the prompt is empty", param="prompt")
    check_max_tokens(params, context_len)
    left = context_len - num_prompt
    if left < (0 if params.max_tokens == 0 else 1):
        raise RequestError(
            f"This model's maximum context length is {context_len} tokens, but the prompt has {num_prompt} tokens, "
            "which leaves none for an answer; shorten the prompt",
            param="messages",
            code="context_length_exceeded",
        )
    if params.min_tokens > left:
        raise RequestError(
            f"min_tokens={params.min_tokens} is more than the {left} tokens that a prompt of {num_prompt} leaves of "
            f"max_model_len={context_len}; ask for fewer or shorten the prompt",
            param="min_tokens",
        )
    if params.max_tokens is not None and params.max_tokens <= left:
        return params
    return params.replace(max_tokens=left)


def _check_logprobs(name: str, asked: int | None, limits: Limits) -> None:
    """-1 is the whole vocabulary, in the request and in the limit."""
    most = limits.vocab_size if limits.max_logprobs < 0 else limits.max_logprobs
    if asked is not None and (limits.vocab_size if asked < 0 else asked) > most:
        shown = "all (-1)" if asked < 0 else asked
        raise RequestError(f"{name} asks for {shown}, but at most {most} are allowed (--max-logprobs)", param=name)


def _check_media(prompt: Prompt, limits: Limits) -> None:
    end = 0
    for item in prompt.media:
        span = item.span
        is_whole = span.is_embed is None or len(span.is_embed) == span.length
        if span.offset < end or span.end > len(prompt.token_ids) or span.length < 1 or not is_whole:
            raise RequestError("the prompt's media do not match its placeholders", param="messages")
        end = span.end
        _check_encoder_room(limits.num_bytes(item), f"one {item.modality}", limits)
    if not limits.enable_chunked_prefill:  # then all of a prompt is computed in one step
        _check_encoder_room(sum(limits.num_bytes(item) for item in prompt.media), "all media together", limits)


def _check_encoder_room(num_bytes: int, what: str, limits: Limits) -> None:
    if num_bytes > limits.encoder_cache_bytes:
        raise RequestError(
            f"the embeddings of {what} take {num_bytes} bytes, more than the {limits.encoder_cache_bytes} of the "
            "encoder cache (--encoder-cache-gib); send smaller or fewer media",
            param="messages",
            status=413,
        )
