"""GET /openapi.json: the API as an OpenAPI 3.1 document, made of the models that requests are checked with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from trifocal import __version__
from trifocal.api.openai.objects import ErrorAnswer
from trifocal.api.operations import Operation, operation_of
from trifocal.http.auth import OPEN_PATHS
from trifocal.http.context import IGNORED_HEADER

Json = dict[str, Any]
_SCHEMAS = "#/components/schemas/"
_ERRORS = {
    400: "the body, one of its fields or a media item cannot be used; `param` names it",
    401: "no valid API key",
    404: "no such model",
    408: "the body did not arrive in time (--body-timeout)",
    413: "the body is too large (--max-request-bytes)",
    415: "the header Content-Type says that the body is not JSON",
    431: "too many headers (--h11-max-header-count)",
    500: "the engine failed on this request, or an internal error happened; the server's log says more",
    503: "the server is overloaded, shutting down, or without an engine at the moment",
    504: "preparing, waiting or answering took longer than its limit",
}
_RETRY_AFTER = {"description": "seconds to wait before trying again", "schema": {"type": "integer"}}
_IGNORED = {"description": "fields of the body that had no effect", "schema": {"type": "string"}}
_STREAM = (
    "the answer. If `stream` is true: events `data: {…}` with pieces of it, and at the end `data: [DONE]`. If it "
    "breaks off, an event with `error` comes instead. The first event has `ignored_fields` if there are any."
)


def router_of(routers: Sequence[APIRouter], *, has_keys: bool, root_path: str | None = None) -> APIRouter:
    """A router with /openapi.json, which describes all of `routers`. `has_keys`: a key is asked for.

    `root_path` is where a proxy shows them.
    """
    router = APIRouter()
    routes = [route for each in routers for route in each.routes if isinstance(route, APIRoute)]

    @cache  # made when first asked for: starting the server needs none of it
    def content() -> bytes:
        servers = {"servers": [{"url": root_path}]} if root_path else {}
        return msgspec.json.encode({**document(routes, has_keys=has_keys), **servers})

    @router.api_route("/openapi.json", methods=["GET", "HEAD"], response_model=None)
    async def openapi() -> Response:
        """This document."""
        return Response(content(), media_type="application/json")

    return router


def document(routes: Iterable[APIRoute], *, has_keys: bool) -> Json:
    """The OpenAPI document of `routes`, each of which was `described`."""
    routes = list(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        for method in sorted(route.methods or ()):
            paths.setdefault(route.path_format, {})[method.lower()] = _operation(route, method, has_keys)
    components: Json = {"schemas": _schemas([operation_of(route) for route in routes])}
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    info = {
        "title": "Trifocal",
        "version": __version__,
        "description": "OpenAI-compatible server. Numbers may be bounded further by the server's flags.",
    }
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _operation(route: APIRoute, method: str, has_keys: bool) -> Json:
    said, is_guarded = operation_of(route), has_keys and route.path not in OPEN_PATHS
    statuses = sorted([*said.errors, *([401] if is_guarded else [])])
    operation: Json = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{route.path_format}").strip("_"),
        "summary": " ".join((route.endpoint.__doc__ or "").split()),
        "responses": {"200": _answer(said, method), **{str(status): _error(said, status) for status in statuses}},
    }
    if is_guarded:
        operation["security"] = [{"key": []}]
    if route.param_convertors:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in route.param_convertors
        ]
    if said.body is not None:
        schema = {"$ref": _SCHEMAS + said.body.__name__}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _answer(said: Operation, method: str) -> Json:
    headers = {"headers": {IGNORED_HEADER: _IGNORED}} if said.body is not None else {}
    return {**_content(said, method), **headers}


def _content(said: Operation, method: str) -> Json:
    if said.answer is None:
        return {"description": "an empty body"}
    if method == "HEAD":
        return {"description": "the headers of the answer to GET"}
    schema: Json = {"type": "string"} if said.answer is str else {"$ref": _SCHEMAS + said.answer.__name__}
    content: Json = {said.media_type: {"schema": schema}}
    if not said.streams:
        return {"description": "the answer", "content": content}
    return {"description": _STREAM, "content": {**content, "text/event-stream": {}}}


def _error(said: Operation, status: int) -> Json:
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + (said.error or ErrorAnswer).__name__}}}
    headers = {"headers": {"Retry-After": _RETRY_AFTER}} if status == 503 else {}
    return {"description": _ERRORS[status], "content": content, **headers}


def _schemas(operations: Iterable[Operation]) -> Json:
    bodies = {said.body: None for said in operations if said.body is not None}  # in order, each once
    answers = {said.answer: None for said in operations if said.answer not in (None, str)}
    _, taken = models_json_schema([(body, "validation") for body in bodies], ref_template=_SCHEMAS + "{model}")
    errors = dict.fromkeys(said.error or ErrorAnswer for said in operations)
    _, given = msgspec.json.schema_components([*answers, *errors], ref_template=_SCHEMAS + "{name}")
    return {**taken["$defs"], **given}
