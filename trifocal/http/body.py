"""The body of a request: its type, its bytes and its values are checked before anything is parsed."""

from __future__ import annotations

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.http.admission import Admission
from trifocal.http.context import RequestContext, context_of
from trifocal.http.timeouts import within

T = TypeVar("T")

_MARKS = (b",", b"[", b"{")  # one of them comes before every JSON value but the first
_JSON = re.compile(r"application/([\w.-]+\+)?json")
_INLINE_BYTES = 64 << 10  # parsing this much takes well under a millisecond; more goes to a thread


async def read_json(request: Request, admission: Admission, args: ServerArgs, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of the body. It is called in a thread if there is much of it.

    Raises `OverloadedError` before anything is read, `RequestError` 400 (by `parse`), 408, 413 or 415, and
    `ClientDisconnect`. From here on the request holds a place in `admission`.
    """
    context = context_of(request)
    _check_content_type(context.headers.get("content-type"))
    context.holding = admission.open()
    async with within(args.body_timeout, "the body", "body-timeout", status=408):
        data = await _read(request, context, args)
    is_short = len(data) <= _INLINE_BYTES
    data = data.removeprefix(BOM_UTF8)  # editors of Windows write one
    return parse(data) if is_short else await asyncio.to_thread(parse, data)


def _check_content_type(value: str | None) -> None:
    """Raise `RequestError` 415 for a body that says it is no JSON. One that says nothing may be some."""
    kind = "" if value is None else value.partition(";")[0].strip().lower()
    if value is not None and not _JSON.fullmatch(kind):
        raise RequestError(
            f"the body must be JSON, sent with the header Content-Type: application/json, got {kind[:60]!r} "
            "(curl: -H 'Content-Type: application/json')",
            status=415,
        )


async def _read(request: Request, context: RequestContext, args: ServerArgs) -> bytes:
    """The body. What is refused in the middle goes on arriving: uvicorn drops it, and the client reads the answer.

    Values are counted before they are parsed: `[[],[],…` takes twenty times its bytes, and the interpreter's lock.
    """
    chunks: list[bytes] = []
    num_values = 1
    async for chunk in request.stream():
        context.received(len(chunk))
        if context.num_bytes_in > args.max_request_bytes:
            raise RequestError(f"the body is larger than --max-request-bytes {args.max_request_bytes}", status=413)
        num_values += sum(map(chunk.count, _MARKS))
        if num_values > args.max_request_values:
            raise RequestError(f"the body has more JSON values than --max-request-values {args.max_request_values}",
                               status=413)  # fmt: skip
        chunks.append(chunk)
    return b"".join(chunks)
