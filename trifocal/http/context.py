"""`RequestContext`: one HTTP request from its first header to its last byte. What it was and what it held is here."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trifocal.errors import RequestError
from trifocal.http.admission import Holding
from trifocal.http.errors import ErrorForm, code_of, error_response, to_error
from trifocal.log import request_id
from trifocal.media.watch import watching
from trifocal.prompt.ignored_fields import Ignored, text_of
from trifocal.sampling_params import SamplingParams
from trifocal.types import MediaItem, Prompt, SharedPixels

HEADER = "x-request-id"
IGNORED_HEADER = "x-ignored-fields"
CLIENT_CLOSED = "client_closed"  # stands for an error where there was nobody left to tell one
CLIENT_CLOSED_REQUEST = 499  # nginx's status for that
_USABLE = re.compile(r"[\w.:-]{1,128}", re.ASCII)  # it goes into logs, ids and a response header
_MAX_PATH = 128  # characters of a path in the log


@dataclass(slots=True)
class RequestContext:
    """Facts about one request, collected on its way. Times are `time.perf_counter`, `began` is `time.time`."""

    id: str
    method: str
    path: str
    client: str
    headers: Headers
    error_form: ErrorForm  # how its API writes errors
    arrived: float = field(default_factory=time.perf_counter)
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    route: str = ""  # the path of the route that took it
    status: int = 0
    error: str | None = None
    num_bytes_in: int = 0
    num_bytes_out: int = 0
    num_media_bytes: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    first_token: float | None = None
    model: str = ""
    params: SamplingParams | None = None
    ignored: tuple[Ignored, ...] = ()  # fields of the body that had no effect
    steps: dict[str, float] = field(default_factory=dict)  # seconds of fetching, decoding, preprocessing
    holding: Holding | None = None

    @classmethod
    def begin(cls, scope: Scope, error_form: ErrorForm) -> RequestContext:
        """The context of a request that has just arrived; its id is the client's `x-request-id` if that is usable."""
        headers = Headers(scope=scope)
        brought = headers.get(HEADER, "")
        return cls(
            id=brought if _USABLE.fullmatch(brought) else uuid.uuid4().hex,
            method=scope["method"],
            path=quote(scope["path"])[:_MAX_PATH],
            client="{}:{}".format(*scope["client"]) if scope.get("client") else "",
            headers=headers,
            error_form=error_form,
        )

    def received(self, num_bytes: int) -> None:
        """Bytes of the body have come. Raises `OverloadedError` where all requests together have too many."""
        self.num_bytes_in += num_bytes
        if self.holding is not None:
            self.holding.take(num_bytes)

    def fetched(self, num_bytes: int) -> None:
        """Bytes of media have come, likewise."""
        self.num_media_bytes += num_bytes
        if self.holding is not None:
            self.holding.take(num_bytes)

    def took(self, step: str, seconds: float) -> None:
        """A step of preparing the prompt took so long."""
        self.steps[step] = self.steps.get(step, 0.0) + seconds

    def keeps_pixels(self, prompts: Sequence[Prompt]) -> None:
        """Body and files are gone, the pixels of `prompts` stay until the end. Raises `OverloadedError`."""
        if self.holding is not None:
            self.holding.keep(sum(num_bytes(item) for prompt in prompts for item in prompt.media))

    def refusal(self, error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
        """The response to a request that is refused, noted."""
        self.error = code_of(error)
        return error_response(error, self.error_form, headers)

    def end(self) -> None:
        """Give back what is held."""
        self.ended = time.perf_counter()
        if self.holding is not None:
            self.holding.close()


class RequestContexts:
    """ASGI middleware, the outermost: begins and ends contexts, sends their ids back, answers what nobody else could.

    Names of ignored fields go back likewise. `error_form_of` says of a path how errors are written there; `on_end` is
    called with each context that has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_headers: int,
        error_form_of: Callable[[str], ErrorForm],
        on_end: Callable[[RequestContext], None],
    ) -> None:
        self._app = app
        self._max_headers = max_headers
        self._error_form_of = error_form_of
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the context in `scope["state"]`, where `context_in` finds it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        context = RequestContext.begin(scope, self._error_form_of(path_in(scope)))
        scope.setdefault("state", {})["context"] = context
        token = request_id.set(context.id)
        watching.set(context)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = context.id
                if context.ignored:
                    headers[IGNORED_HEADER] = text_of(context.ignored)
            elif message["type"] == "http.response.body" and context.method != "HEAD":
                context.num_bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(context, scope, receive, watched)
        finally:
            route: Any = scope.get("route")
            context.route = getattr(route, "path", "")
            context.end()
            self._on_end(context)
            request_id.reset(token)

    async def _answer(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        if len(scope["headers"]) > self._max_headers:
            error = RequestError(
                f"the request has more than {self._max_headers} headers (--h11-max-header-count)", status=431
            )
            await context.refusal(error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            response = context.refusal(to_error(error))
            if context.status == 0:  # else it has begun and stays incomplete: the connection is closed
                await response(scope, receive, send)


def num_bytes(item: MediaItem) -> int:
    """Bytes of an item's pixels, for as long as they are here and not in the media store."""
    return 0 if isinstance(item.pixels, SharedPixels) else item.pixels.nbytes


def path_in(scope: Scope) -> str:
    """The path as the routes know it: a proxy may have left --root-path on it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def context_in(scope: Scope) -> RequestContext:
    """The context that `RequestContexts` began."""
    context = scope["state"]["context"]
    assert isinstance(context, RequestContext)
    return context


def context_of(request: Request) -> RequestContext:
    """The context of a route's request."""
    return context_in(request.scope)
