"""Reading a body: the parser is handed in, and works outside the event loop where there is much to parse."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from trifocal.api.openai.errors import error_form
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.http.admission import Admission
from trifocal.http.body import read_json
from trifocal.http.context import RequestContext


def request_of(*chunks: bytes, kind: str = "application/json") -> Request:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    context = RequestContext("an-id", "POST", "/", "", Headers({"content-type": kind}), error_form)
    return Request({"type": "http", "state": {"context": context}}, receive)


async def read(request: Request, **flags: Any) -> tuple[Any, bool]:
    """What a parser of JSON makes of the body, and whether it worked in the event loop's thread."""
    args = ServerArgs(**flags)
    here = threading.current_thread()
    return await read_json(
        request, Admission(args), args, lambda data: (json.loads(data), threading.current_thread() is here)
    )


async def test_the_parser_is_handed_in() -> None:
    request = request_of(b"\xef\xbb\xbf[1,", b"2]")
    assert await read(request) == ([1, 2], True)
    context = request.scope["state"]["context"]
    assert context.num_bytes_in == 8 and context.holding is not None
    long = ["x" * 100_000]
    assert await read(request_of(json.dumps(long).encode())) == (long, False)


async def test_what_is_too_much_is_never_parsed() -> None:
    for request, flags, status, says in (
        (request_of(b"[1,", b"2]"), {"max_request_bytes": 4}, 413, "--max-request-bytes 4"),
        (request_of(b"[1,", b"2]"), {"max_request_values": 2}, 413, "--max-request-values 2"),
        (request_of(b"[]", kind="text/plain"), {}, 415, "Content-Type: application/json"),
    ):
        with pytest.raises(RequestError, match=says) as caught:
            await read(request, **flags)
        assert caught.value.status == status
