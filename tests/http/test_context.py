"""Errors are written in the form of the API that a path belongs to, whoever finds them."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from fastapi import APIRouter, FastAPI
from starlette.responses import Response

from trifocal.api import handlers
from trifocal.api.openai.errors import error_form
from trifocal.api.surface import Surface, error_forms
from trifocal.errors import RequestError
from trifocal.http.auth import BearerAuth
from trifocal.http.context import RequestContext, RequestContexts
from trifocal.http.errors import code_of

KEY = {"Authorization": "Bearer a-key"}


def other_form(error: RequestError) -> Mapping[str, object]:
    return {"type": "error", "error": {"type": code_of(error), "message": error.message}}


async def fail(kind: str) -> Response:
    """Two ways to fail: known to the handlers, and to nobody."""
    raise RequestError("no", param="kind") if kind == "known" else ValueError("a secret")


def application(ended: list[RequestContext]) -> FastAPI:
    one, other = APIRouter(), APIRouter()
    one.add_api_route("/one", fail, response_model=None)
    other.add_api_route("/other", fail, response_model=None)
    surfaces = [Surface([one], error_form), Surface([other], other_form)]
    app = FastAPI(openapi_url=None)
    for surface in surfaces:
        for router in surface.routers:
            app.include_router(router)
    handlers.install(app)
    app.add_middleware(BearerAuth, keys=["a-key"])
    forms = error_forms(surfaces, error_form)
    app.add_middleware(RequestContexts, max_headers=12, error_form_of=forms, on_end=ended.append)
    return app


async def test_each_api_has_its_own_form() -> None:
    ended: list[RequestContext] = []
    transport = httpx.ASGITransport(application(ended), root_path="/proxied")
    many = {f"x-{number}": "" for number in range(20)}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for query, headers, status, code in (
            ("?kind=known", KEY, 400, "invalid_value"),
            ("?kind=unknown", KEY, 500, "internal_error"),
            ("?kind=known", {}, 401, "invalid_api_key"),
            ("?kind=known", {**KEY, **many}, 431, "headers_too_large"),
        ):
            for prefix in ("", "/proxied"):  # a proxy may leave it on, or take it off
                one = await client.get(f"{prefix}/one{query}", headers=headers)
                other = await client.get(f"{prefix}/other{query}", headers=headers)
                assert one.status_code == other.status_code == status
                assert one.json()["error"]["code"] == other.json()["error"]["type"] == code
                assert "param" in one.json()["error"] and other.json()["type"] == "error"
                assert "secret" not in one.text + other.text
                assert [context.error for context in ended[-2:]] == [code, code]
        assert (await client.delete("/other", headers=KEY)).json()["error"]["type"] == "method_not_allowed"
        nowhere = await client.get("/nowhere", headers=KEY)
        assert nowhere.json()["error"]["code"] == "not_found", "the form of everything that has no other"
