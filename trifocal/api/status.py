"""Routes about the service itself: models, health, version, metrics."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal import __version__
from trifocal.api.openai.responses import ModelCard, ModelList, ModelPermission, Version
from trifocal.api.operations import described
from trifocal.errors import EngineDeadError, RequestError
from trifocal.http.errors import OverloadedError
from trifocal.http.service import Service, service_of
from trifocal.metrics import CONTENT_TYPE

router = APIRouter()
_STARTED = int(time.time())
_PROBE = described(errors=(431, 503))
_PERMISSION: ModelPermission = {
    "id": f"modelperm-{uuid4().hex}",
    "object": "model_permission",
    "created": _STARTED,
    "allow_create_engine": False,
    "allow_sampling": True,
    "allow_logprobs": True,
    "allow_search_indices": False,
    "allow_view": True,
    "allow_fine_tuning": False,
    "organization": "*",
    "group": None,
    "is_blocking": False,
}
_STATS_TIMEOUT_S = 2.0  # a scrape must not wait for a long step
_GET = ["GET", "HEAD"]


@router.api_route("/v1/models", methods=_GET, **described(answer=ModelList))
async def list_models(request: Request) -> Response:
    """Every name that requests may give as `model`."""
    service = service_of(request)
    cards = [_card(service, name) for name in service.model_names]
    answer: ModelList = {"object": "list", "data": cards}
    return _json(answer)


@router.api_route("/v1/models/{name:path}", methods=_GET, **described(answer=ModelCard, errors=(404, 431)))
async def retrieve_model(request: Request, name: str) -> Response:
    """One model; 404 where it is not served. Names may be paths."""
    if not name:  # a slash too many
        return await list_models(request)
    service = service_of(request)
    return _json(_card(service, service.check_model(name)))


@router.api_route("/health", methods=_GET, **_PROBE)
@router.api_route("/ping", methods=[*_GET, "POST"], **_PROBE)
async def health(request: Request) -> Response:
    """200 while the engine lives and, if there is work, makes progress; 503 otherwise."""
    await _check_health(service_of(request))
    return Response()


@router.api_route("/live", methods=_GET, **_PROBE)
async def live() -> Response:
    """200: this process answers. What an orchestrator kills for should ask no more than this, or /health."""
    return Response()


@router.api_route("/ready", methods=_GET, **_PROBE)
async def ready(request: Request) -> Response:
    """200 while new work is taken, 503 with the reason otherwise; for load balancers."""
    service = service_of(request)
    if service.admission.is_draining:
        raise OverloadedError("the server is shutting down", code="shutting_down")
    await _check_health(service)
    return Response()


async def _check_health(service: Service) -> None:
    await service.engine.check_health()
    num_steps = sum(stats.num_steps for stats in service.engine.last_stats)
    stalled, limit = service.progress.stalled_s(num_steps), service.args.health_timeout
    if stalled > limit:
        raise RequestError(f"the engine made no step for {stalled:.0f} s (--health-timeout {limit:g})", status=503,
                           code="engine_stalled")  # fmt: skip


@router.api_route("/version", methods=_GET, **described(answer=Version))
async def version() -> Response:
    """The version of Trifocal."""
    answer: Version = {"version": __version__}
    return _json(answer)


@router.api_route("/metrics", methods=_GET, **described(answer=str, media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service = service_of(request)
    try:
        async with asyncio.timeout(_STATS_TIMEOUT_S):
            stats = await service.engine.stats()
    except (TimeoutError, EngineDeadError):  # in a long step; or gone, which is when a scrape matters most
        stats = service.engine.last_stats
    return Response(service.metrics.render(stats), media_type=CONTENT_TYPE)


def _card(service: Service, name: str) -> ModelCard:
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "trifocal",
        "root": service.config.model.spec.path,
        "parent": None,
        "max_model_len": service.engine.max_model_len,
        "permission": [_PERMISSION],
    }


def _json(content: ModelList | ModelCard | Version) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
