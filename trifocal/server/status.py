"""Routes about the service itself: models, health, version, metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal import __version__
from trifocal.metrics import CONTENT_TYPE
from trifocal.server.service import Service, service_of

router = APIRouter()
_STARTED = int(time.time())
_STATS_TIMEOUT_S = 2.0  # a scrape must not wait for a long step


@router.get("/v1/models", response_model=None)
async def list_models(request: Request) -> Response:
    """Every name that requests may give as `model`."""
    service = service_of(request)
    cards = [_card(service, name) for name in service.model_names]
    return _json({"object": "list", "data": cards})


@router.get("/v1/models/{name:path}", response_model=None)
async def retrieve_model(request: Request, name: str) -> Response:
    """One model; 404 where it is not served. Names may be paths."""
    service = service_of(request)
    return _json(_card(service, service.check_model(name)))


@router.api_route("/health", methods=["GET", "HEAD"], response_model=None)
@router.api_route("/ping", methods=["GET", "POST"], response_model=None)
async def health(request: Request) -> Response:
    """200 while the engine makes progress, 503 otherwise."""
    await service_of(request).engine.check_health()
    return Response()


@router.get("/version", response_model=None)
async def version() -> Response:
    """The version of Trifocal."""
    return _json({"version": __version__})


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service = service_of(request)
    try:
        stats = await asyncio.wait_for(service.engine.stats(), _STATS_TIMEOUT_S)
    except TimeoutError:  # in a long step
        stats = service.engine.last_stats
    return Response(service.metrics.render(stats), media_type=CONTENT_TYPE)


def _card(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "trifocal",
        "root": service.config.spec.path,
        "parent": None,
        "max_model_len": service.config.max_model_len,
    }


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
