"""Admission: what can never run is refused before it is queued, so whatever is queued can be finished."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.errors import RequestError
from trifocal.sampling_params import SamplingParams
from trifocal.types import MediaItem, Prompt


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds a step and a request, decided once the device is known."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    bytes_per_embed: int
    encoder_cache_bytes: int
    max_logprobs: int
    vocab_size: int
    enable_chunked_prefill: bool = True

    def num_bytes(self, item: MediaItem) -> int:
        """Bytes that a media item's embeddings take."""
        return item.span.num_embeds * self.bytes_per_embed


def check(prompt: Prompt, params: SamplingParams, limits: Limits) -> None:
    """Raise `RequestError` naming the field for a request that could never run."""
    _check_length(len(prompt.token_ids), params.max_tokens or 1, limits)
    if params.logprobs is not None and params.logprobs > limits.max_logprobs:
        raise RequestError(
            f"logprobs asks for {params.logprobs}, at most {limits.max_logprobs} are allowed (--max-logprobs)",
            param="logprobs",
        )
    # A stop id outside the vocabulary harms nobody, and clients of vLLM send one family's ids to all its members.
    for name, ids in {"prompt": prompt.token_ids, "logit_bias": params.logit_bias}.items():
        unknown = [token_id for token_id in ids or () if not 0 <= token_id < limits.vocab_size]
        if unknown:
            raise RequestError(
                f"{name} has token id {unknown[0]}, the vocabulary ends at {limits.vocab_size - 1}", param=name
            )
    _check_media(prompt, limits)


def _check_length(num_prompt: int, max_tokens: int, limits: Limits) -> None:
    if num_prompt == 0:
        raise RequestError("the prompt is empty", param="prompt")
    room = min(limits.max_model_len, limits.num_blocks * limits.block_size)
    if num_prompt + max_tokens > room:
        raise RequestError(
            f"This model's maximum context length is {room} tokens, but the prompt has {num_prompt} tokens and "
            f"max_tokens asks for {max_tokens} more; shorten one of them",
            param="max_tokens" if num_prompt < room else "messages",
            code="context_length_exceeded",
        )


def _check_media(prompt: Prompt, limits: Limits) -> None:
    end = 0
    for item in prompt.media:
        span = item.span
        is_whole = span.is_embed is None or len(span.is_embed) == span.length
        if span.offset < end or span.end > len(prompt.token_ids) or span.length < 1 or not is_whole:
            raise RequestError("media do not match their placeholders in the prompt", param="messages")
        end = span.end
        _check_encoder_room(limits.num_bytes(item), f"one {item.modality}", limits)
    if not limits.enable_chunked_prefill:  # then all of a prompt is computed in one step
        _check_encoder_room(sum(limits.num_bytes(item) for item in prompt.media), "the media together", limits)


def _check_encoder_room(num_bytes: int, what: str, limits: Limits) -> None:
    if num_bytes > limits.encoder_cache_bytes:
        raise RequestError(
            f"{what} takes {num_bytes} bytes of embeddings, above the encoder cache of {limits.encoder_cache_bytes} "
            "bytes (--encoder-cache-gib); send less",
            param="messages",
            status=413,
        )
