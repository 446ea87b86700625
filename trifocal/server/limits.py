"""What a request may bring, checked before anything is done with it: bytes of the body, counts, token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from trifocal.config import EngineConfig
from trifocal.server.errors import explain
from trifocal.server.extras import check_extras
from trifocal.server.schemas import Body
from trifocal.types import RequestError, SamplingParams

B = TypeVar("B", bound=Body)

MAX_CHOICES = 128  # n, as OpenAI
MAX_PROMPTS = 1024  # prompts in one completion request
MAX_STOP_STRINGS = 64  # each is looked for in every new piece of text
MAX_STOP_LENGTH = 1024  # characters of text held back while a stop string may be coming
_INLINE_BYTES = 64 << 10  # parsing this much takes well under a millisecond; more goes to a thread


async def read_json(request: Request, model: type[B], max_bytes: int) -> B:
    """The body as a `model`, unavailable fields refused. Raises `RequestError` 400 or 413, `ClientDisconnect`."""
    data = await _read(request, max_bytes)
    if len(data) <= _INLINE_BYTES:
        return _parse(data, model)
    return await asyncio.to_thread(_parse, data, model)


def _parse(data: bytes, model: type[B]) -> B:
    try:
        body = model.model_validate_json(data)
    except ValidationError as error:
        raise explain(error) from None
    check_extras(body.model_extra or {}, getattr(body, "n", None))
    return body


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        else:  # go on reading a while: a client in the middle of sending would see a broken pipe, not the answer
            chunks.clear()
            if size > 2 * max_bytes:
                break
    if size > max_bytes:
        raise RequestError(f"the body is larger than --max-request-bytes {max_bytes}", status=413)
    return b"".join(chunks)


def check_params(params: SamplingParams) -> None:
    """Raise `RequestError` for amounts that no engine should be asked for; what this one has, it checks itself."""
    if params.n > MAX_CHOICES:
        raise RequestError(f"n must be at most {MAX_CHOICES}, got {params.n}", param="n")
    stops = params.stop_strings
    if len(stops) > MAX_STOP_STRINGS or any(len(text) > MAX_STOP_LENGTH for text in stops):
        raise RequestError(
            f"stop must be at most {MAX_STOP_STRINGS} strings of at most {MAX_STOP_LENGTH} characters", param="stop"
        )


def check_token_ids(token_ids: Iterable[int], config: EngineConfig, field: str) -> None:
    """Raise `RequestError` naming `field` for an id that the model does not have."""
    size = config.spec.text.vocab_size
    for token_id in token_ids:
        if not 0 <= token_id < size:
            raise RequestError(f"{field}: the vocabulary ends at {size - 1}, got {token_id}", param=field)
