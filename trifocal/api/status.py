"""Routes about the service itself: health, version, metrics."""

from __future__ import annotations

import asyncio
from typing import TypedDict

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal import __version__
from trifocal.api.operations import GET, described
from trifocal.api.service import Service, service_of
from trifocal.errors import EngineDeadError, RequestError
from trifocal.http.errors import OverloadedError
from trifocal.metrics import CONTENT_TYPE

router = APIRouter()
_PROBE = described(errors=(431, 503))
_STATS_TIMEOUT_S = 2.0  # a scrape must not wait for a long step


class Version(TypedDict):
    """The version of Trifocal."""

    version: str


@router.api_route("/health", methods=GET, **_PROBE)
@router.api_route("/ping", methods=[*GET, "POST"], **_PROBE)
async def health(request: Request) -> Response:
    """200 while the engine lives and, if there is work, makes progress; 503 otherwise."""
    await _check_health(service_of(request))
    return Response()


@router.api_route("/live", methods=GET, **_PROBE)
async def live() -> Response:
    """200: this process answers. What an orchestrator kills for should ask no more than this, or /health."""
    return Response()


@router.api_route("/ready", methods=GET, **_PROBE)
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


@router.api_route("/version", methods=GET, **described(answer=Version))
async def version() -> Response:
    """The version of Trifocal."""
    answer: Version = {"version": __version__}
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.api_route("/metrics", methods=GET, **described(answer=str, media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    service = service_of(request)
    try:
        async with asyncio.timeout(_STATS_TIMEOUT_S):
            stats = await service.engine.stats()
    except (TimeoutError, EngineDeadError):  # in a long step; or gone, which is when a scrape matters most
        stats = service.engine.last_stats
    return Response(service.metrics.render(stats), media_type=CONTENT_TYPE)
