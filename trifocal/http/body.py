"""What a request may bring, checked before anything is done with it: bytes of the body, counts, token ids."""

from __future__ import annotations

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from trifocal.api.openai.extras import declared, judge
from trifocal.api.openai.schemas import Body, GenerationBody
from trifocal.config.engine import EngineConfig
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.http.context import Visit, visit_of
from trifocal.http.errors import explain
from trifocal.http.service import service_of
from trifocal.http.timeouts import within
from trifocal.prompt.ignored_fields import Ignored
from trifocal.sampling_params import SamplingParams

B = TypeVar("B", bound=Body)

MAX_STOP_LENGTH = 1024  # characters of text held back while a stop string may be coming
_MARKS = (b",", b"[", b"{")  # one of them comes before every JSON value but the first
_JSON = re.compile(r"application/([\w.-]+\+)?json")
_INLINE_BYTES = 64 << 10  # parsing this much takes well under a millisecond; more goes to a thread


async def read_json(request: Request, model: type[B]) -> B:
    """The body as a `model`, fields that would change the answer refused and those ignored noted in the visit.

    The first thing that a route which works does. Raises `OverloadedError` before anything is read, `RequestError` 400,
    408, 413 or 415, `ClientDisconnect`.
    """
    service, visit = service_of(request), visit_of(request)
    args = service.args
    _check_content_type(visit.headers.get("content-type"))
    visit.holding = service.admission.open()
    async with within(args.body_timeout, "the body", "body-timeout", status=408):
        data = await _read(request, visit, args)
    if len(data) <= _INLINE_BYTES:
        body, visit.ignored = _parse(data, model, args)
    else:
        body, visit.ignored = await asyncio.to_thread(_parse, data, model, args)
    return body


def _check_content_type(value: str | None) -> None:
    """Raise `RequestError` 415 for a body that says it is no JSON. One that says nothing may be some."""
    kind = "" if value is None else value.partition(";")[0].strip().lower()
    if value is not None and not _JSON.fullmatch(kind):
        raise RequestError(
            f"the body must be JSON and be sent with Content-Type: application/json, got {kind[:60]!r} "
            "(curl: -H 'Content-Type: application/json')",
            status=415,
        )


def _parse(data: bytes, model: type[B], args: ServerArgs) -> tuple[B, tuple[Ignored, ...]]:
    try:
        body = model.model_validate_json(data.removeprefix(BOM_UTF8))  # editors of Windows write one
    except ValidationError as error:
        raise explain(error) from None
    if args.enable_force_include_usage and isinstance(body, GenerationBody):
        body.force_usage()
    ignored = judge(body, body.without_effect, of_others=body.of_others, is_strict=args.strict_request_fields)
    _check_counts(body, args)
    return body, ignored


async def _read(request: Request, visit: Visit, args: ServerArgs) -> bytes:
    """The body. What is refused in the middle goes on arriving: uvicorn drops it, and the client reads the answer.

    Values are counted before they are parsed: `[[],[],…` takes twenty times its bytes, and the interpreter's lock.
    """
    chunks: list[bytes] = []
    num_values = 1
    async for chunk in request.stream():
        visit.received(len(chunk))
        if visit.num_bytes_in > args.max_request_bytes:
            raise RequestError(f"the body is larger than --max-request-bytes {args.max_request_bytes}", status=413)
        num_values += sum(map(chunk.count, _MARKS))
        if num_values > args.max_request_values:
            raise RequestError(f"the body has more values than --max-request-values {args.max_request_values}",
                               status=413)  # fmt: skip
        chunks.append(chunk)
    return b"".join(chunks)


def _check_counts(body: Body, args: ServerArgs) -> None:
    """Raise `RequestError` for lists that are too long. In the thread: later they are looked at on the event loop."""
    for name, flag in {"stop": "stop_strings", "stop_token_ids": "stop_token_ids", "logit_bias": "logit_bias"}.items():
        value, most = declared(body, name), getattr(args, f"max_{flag}")
        if isinstance(value, list | dict) and len(value) > most:
            raise RequestError(f"{name} must have at most {most} entries (--max-{flag.replace('_', '-')})", param=name)


def check_params(params: SamplingParams, args: ServerArgs) -> None:
    """Raise `RequestError` for amounts that no engine should be asked for; what this one has, it checks itself."""
    if params.n > args.max_n:
        raise RequestError(f"n must be at most {args.max_n} (--max-n), got {params.n}", param="n")
    if any(len(text) > MAX_STOP_LENGTH for text in params.stop_strings):
        raise RequestError(f"stop must be strings of at most {MAX_STOP_LENGTH} characters", param="stop")


def check_token_ids(token_ids: Iterable[int], config: EngineConfig, field: str) -> None:
    """Raise `RequestError` naming `field` for an id that the model does not have."""
    size = config.model.spec.text.vocab_size
    for token_id in token_ids:
        if not 0 <= token_id < size:
            raise RequestError(f"{field}: the vocabulary ends at {size - 1}, got {token_id}", param=field)
