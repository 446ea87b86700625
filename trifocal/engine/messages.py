"""Messages between the server process and the engine process: msgspec structs as msgpack, never pickle.

What they carry are the dataclasses of `trifocal.types` as they are. Of arrays only positions travel. Pixels lie in
shared memory (`engine/media_store.py`), and a message says where.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trifocal.config.engine import EngineConfig
from trifocal.engine.limits import Limits
from trifocal.types import EngineStats, Pixels, Request, SharedPixels, TokenOutput


class Message(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """On the wire a message is an array: the name of its class, then its fields."""


class AddRequest(Message, frozen=True):
    """Server to engine: a new request. Its pixels are in the media store."""

    request: Request


class AbortRequests(Message, frozen=True):
    """Server to engine: forget these requests, wherever they are."""

    request_ids: list[str]


class QueryStats(Message, frozen=True):
    """Server to engine: send a `Report`."""


class Stop(Message, frozen=True):
    """Server to engine: end the process."""


class Ready(Message, frozen=True):
    """Engine to server: weights are loaded; what was decided on the device."""

    limits: Limits


class Failed(Message, frozen=True):
    """Engine to server: the engine cannot start or go on. `is_config` means the user can fix it."""

    message: str
    is_config: bool


class Outputs(Message, frozen=True):
    """Engine to server: what a step produced, and the state after it."""

    outputs: list[TokenOutput]
    stats: EngineStats


class Report(Message, frozen=True):
    """Engine to server: the answer to `QueryStats`."""

    stats: EngineStats


ToEngine = AddRequest | AbortRequests | QueryStats | Stop
FromEngine = Ready | Failed | Outputs | Report


def _encode_array(value: Any) -> Any:
    """An array of whole numbers as rows and bytes, in the smallest type that holds them."""
    if not isinstance(value, np.ndarray) or value.dtype != np.int64:
        raise TypeError("of arrays only positions are sent; pixels must be in the media store before")
    kind = np.result_type(np.min_scalar_type(value.min(initial=0)), np.min_scalar_type(value.max(initial=0)))
    return kind.str, value.shape, value.astype(kind).tobytes()


def _decode_array(kind: Any, value: Any) -> NDArray[np.int64] | SharedPixels:
    if kind is Pixels:
        return msgspec.convert(value, SharedPixels)
    dtype, shape, data = value
    return np.frombuffer(data, dtype).astype(np.int64).reshape(shape)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine, dec_hook=_decode_array)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_config = msgspec.msgpack.Decoder(EngineConfig)


def encode(message: Any) -> bytes:
    """A message, or an `EngineConfig`, as msgpack. Raises `TypeError` for pixels outside the media store."""
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
