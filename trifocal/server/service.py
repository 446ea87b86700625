"""What the routes share: the engine, the front half, the configuration, the names they serve."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from trifocal.config import EngineConfig
from trifocal.engine.async_engine import AsyncEngine
from trifocal.metrics import Metrics
from trifocal.multimodal.chat import PromptBuilder
from trifocal.server.args import ServerArgs
from trifocal.types import RequestError


@dataclass(frozen=True)
class Service:
    """One served model."""

    engine: AsyncEngine
    builder: PromptBuilder
    config: EngineConfig
    args: ServerArgs
    metrics: Metrics

    @property
    def model_names(self) -> list[str]:
        """Names that requests may give; the first is the one in answers to requests that give none."""
        return self.args.served_model_name or [self.config.spec.path]

    def check_model(self, name: str | None) -> str:
        """The name that answers carry. Raises `RequestError` 404 for a model that is not served."""
        if name is None:
            return self.model_names[0]
        if name not in self.model_names:
            raise RequestError(
                f"the model {name[:200]!r} does not exist; served: {', '.join(self.model_names)}",
                param="model", status=404, code="model_not_found",
            )  # fmt: skip
        return name


def service_of(request: Request) -> Service:
    """The service that the app was created with."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
