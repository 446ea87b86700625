"""Messages between the server process and the engine process: msgspec structs as msgpack, never pickle.

Pixels are not in a message: they lie in shared memory (`engine/media_store.py`) and travel as `SharedPixels`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from trifocal.config.engine import EngineConfig
from trifocal.engine.admission import Limits
from trifocal.sampling_params import SamplingParams
from trifocal.types import EngineStats, MediaItem, Modality, Prompt, Request, SharedPixels, Span, TokenOutput


class WireMedia(msgspec.Struct, array_like=True, frozen=True):
    """A `MediaItem` whose pixels are in the media store."""

    modality: Modality
    content_hash: bytes
    span: Span
    grid: list[int]
    pixels: SharedPixels


class AddRequest(msgspec.Struct, tag=True, frozen=True):
    """Server to engine: a new request. `positions` are the bytes of an int64 array with `position_rows` rows."""

    request_id: str
    token_ids: list[int]
    media: list[WireMedia]
    positions: bytes | None
    position_rows: int
    position_delta: int
    cache_salt: str | None
    cache_key_extra: bytes
    params: SamplingParams
    stop_token_ids: list[int]
    seed: int
    output_token_ids: list[int]
    prompt_logprobs: int | None
    bad_word_ids: tuple[tuple[int, ...], ...]

    @classmethod
    def pack(cls, request: Request) -> AddRequest:
        """The message for a request whose pixels are in the media store already."""
        prompt = request.prompt
        return cls(
            request_id=request.request_id,
            token_ids=prompt.token_ids,
            media=[
                WireMedia(item.modality, item.content_hash, item.span, list(item.grid), _shared(item))
                for item in prompt.media
            ],
            positions=None if prompt.positions is None else prompt.positions.astype(np.int64).tobytes(),
            position_rows=1 if prompt.positions is None else prompt.positions.shape[0],
            position_delta=prompt.position_delta,
            cache_salt=prompt.cache_salt,
            cache_key_extra=prompt.cache_key_extra,
            params=request.params,
            stop_token_ids=sorted(request.stop_token_ids),
            seed=request.seed,
            output_token_ids=list(request.output_token_ids),
            prompt_logprobs=request.prompt_logprobs,
            bad_word_ids=request.bad_word_ids,
        )

    def unpack(self) -> Request:
        """The request; its pixels are still `SharedPixels`."""
        positions = None
        if self.positions is not None:
            positions = np.frombuffer(self.positions, dtype=np.int64).reshape(self.position_rows, -1)
        media = tuple(
            MediaItem(item.modality, item.content_hash, item.span, tuple(item.grid), item.pixels) for item in self.media
        )
        prompt = Prompt(
            self.token_ids,
            media,
            positions,
            self.position_delta,
            cache_salt=self.cache_salt,
            cache_key_extra=self.cache_key_extra,
        )
        return Request(
            request_id=self.request_id,
            prompt=prompt,
            params=self.params,
            stop_token_ids=frozenset(self.stop_token_ids),
            seed=self.seed,
            output_token_ids=tuple(self.output_token_ids),
            prompt_logprobs=self.prompt_logprobs,
            bad_word_ids=self.bad_word_ids,
        )


def _shared(item: MediaItem) -> SharedPixels:
    if not isinstance(item.pixels, SharedPixels):
        raise TypeError("pixels must be in the media store before they are sent")
    return item.pixels


class AbortRequests(msgspec.Struct, tag=True, frozen=True):
    """Server to engine: forget these requests, wherever they are."""

    request_ids: list[str]


class QueryStats(msgspec.Struct, tag=True, frozen=True):
    """Server to engine: send a `Report`."""


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Server to engine: end the process."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Engine to server: weights are loaded; what was decided on the device."""

    limits: Limits


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Engine to server: the engine cannot start or go on. `is_config` means the user can mend it."""

    message: str
    is_config: bool


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """Engine to server: what a step produced, and the state after it."""

    outputs: list[TokenOutput]
    stats: EngineStats


class Report(msgspec.Struct, tag=True, frozen=True):
    """Engine to server: the answer to `QueryStats`."""

    stats: EngineStats


ToEngine = AddRequest | AbortRequests | QueryStats | Stop
FromEngine = Ready | Failed | Outputs | Report

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_config = msgspec.msgpack.Decoder(EngineConfig)


def encode(message: Any) -> bytes:
    """A message, or an `EngineConfig`, as msgpack."""
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Raises `msgspec.ValidationError`."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    """Raises `msgspec.ValidationError`."""
    return _from_engine.decode(data)


def decode_config(data: bytes) -> EngineConfig:
    """Raises `msgspec.ValidationError`."""
    return _config.decode(data)
