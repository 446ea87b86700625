"""GET /v1/models: the names that requests may give."""

from __future__ import annotations

import time
from uuid import uuid4

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from trifocal.api.openai.objects import ModelCard, ModelList, ModelPermission
from trifocal.api.operations import GET, described
from trifocal.api.service import Service, service_of

router = APIRouter()
_STARTED = int(time.time())
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


@router.api_route("/v1/models", methods=GET, **described(answer=ModelList))
async def list_models(request: Request) -> Response:
    """Every name that requests may give as `model`."""
    service = service_of(request)
    cards = [_card(service, name) for name in service.model_names]
    answer: ModelList = {"object": "list", "data": cards}
    return _json(answer)


@router.api_route("/v1/models/{name:path}", methods=GET, **described(answer=ModelCard, errors=(404, 431)))
async def retrieve_model(request: Request, name: str) -> Response:
    """One model; 404 where it is not served. Names may be paths."""
    if not name:  # a slash too many
        return await list_models(request)
    service = service_of(request)
    return _json(_card(service, service.check_model(name)))


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


def _json(content: ModelList | ModelCard) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
