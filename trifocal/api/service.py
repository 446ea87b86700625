"""What the routes share: the engine, the front half, the configuration, the names they serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from trifocal.api.parsers.base import ParserFactory
from trifocal.config.engine import EngineConfig
from trifocal.config.server import ServerArgs
from trifocal.engine.async_engine import AsyncEngine
from trifocal.errors import RequestError
from trifocal.http.access_log import AccessLog
from trifocal.http.admission import Admission
from trifocal.http.context import CLIENT_CLOSED_REQUEST, RequestContext
from trifocal.http.progress import Progress
from trifocal.http.tracing import Tracer
from trifocal.metrics import Metrics
from trifocal.prompt.builder import PromptBuilder


@dataclass(frozen=True)
class Service:
    """One served model."""

    engine: AsyncEngine
    builder: PromptBuilder
    config: EngineConfig
    args: ServerArgs
    metrics: Metrics
    admission: Admission
    access_log: AccessLog
    tracer: Tracer | None
    progress: Progress = field(default_factory=Progress)
    parsers: Sequence[ParserFactory] = ()  # of conversations

    @property
    def model_names(self) -> list[str]:
        """Names that requests may give; the first is the one in answers to requests that give none."""
        return self.args.served_model_name or [self.config.model.spec.path]

    def record(self, context: RequestContext) -> None:
        """Take a request that has ended into the metrics, the access log and the traces."""
        metrics = self.metrics
        metrics.responded(context.method, context.route, context.status or CLIENT_CLOSED_REQUEST, context.error)
        metrics.body_bytes.inc(context.num_bytes_in)
        metrics.media_bytes.inc(context.num_media_bytes)
        for step, seconds in context.steps.items():
            metrics.media_steps[step].observe(seconds)
        self.access_log(context)
        if self.tracer is not None:
            self.tracer.record(context)

    def check_model(self, name: str | None) -> str:
        """The name that answers carry. Raises `RequestError` 404 for a model that is not served.

        No name, and an empty one, is the first model. Most names are folders, so a slash at the end is no part of them.
        """
        if not name:
            return self.model_names[0]
        if name in self.model_names:
            return name
        served = next((each for each in self.model_names if _folder(each) == _folder(name)), None)
        if served is None:
            raise RequestError(
                f"the model {name[:200]!r} does not exist; served: {', '.join(self.model_names)}",
                param="model", status=404, code="model_not_found",
            )  # fmt: skip
        return served


def _folder(name: str) -> str:
    return name.rstrip("/") or name


def service_of(request: Request) -> Service:
    """The service that the app was created with."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
