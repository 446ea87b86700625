"""The server: `create_app` puts the routes together, `serve` is its lifetime.

FastAPI is imported inside `create_app`: the engine process starts first, and the rest is imported while it loads.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trifocal.config.engine import EngineConfig
from trifocal.config.server import ServerArgs
from trifocal.engine.async_engine import AsyncEngine
from trifocal.errors import EngineDeadError
from trifocal.log import get_logger
from trifocal.malloc import few_heaps, give_back, no_large_leftovers

if TYPE_CHECKING:
    from fastapi import FastAPI

    from trifocal.api.service import Service
    from trifocal.http.admission import Admission
    from trifocal.http.tracing import Tracer
    from trifocal.prompt.builder import PromptBuilder

logger = get_logger(__name__)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TIDY_EVERY_S = 5.0


def create_app(
    engine: AsyncEngine, builder: PromptBuilder, config: EngineConfig, args: ServerArgs, tracer: Tracer | None = None
) -> FastAPI:
    """The ASGI application over an engine that is ready. It owns neither engine nor builder nor tracer."""
    from fastapi import FastAPI

    from trifocal.api import handlers, openapi, status
    from trifocal.api.openai.surface import OPENAI
    from trifocal.api.surface import error_forms
    from trifocal.http.auth import BearerAuth
    from trifocal.http.context import RequestContexts

    # Routes parse their bodies themselves, so what FastAPI would publish knows nothing of them: see `openapi`.
    app = FastAPI(openapi_url=None, root_path=args.root_path or "")
    service = app.state.service = _service(engine, builder, config, args, tracer)
    surfaces = [OPENAI]  # another API is another one
    routers = [*(router for surface in surfaces for router in surface.routers), status.router]
    if not args.disable_fastapi_docs:
        routers.append(openapi.router_of(routers, has_keys=bool(args.api_key), root_path=args.root_path))
    for router in routers:
        app.include_router(router)
    handlers.install(app)
    # What is added last is the outermost: a page's preflight brings no key, and `RequestContexts` sees every refusal.
    if args.api_key:
        app.add_middleware(BearerAuth, keys=args.api_key)
    if args.allowed_origins:
        _allow_origins(app, args)
    app.add_middleware(
        RequestContexts,
        max_headers=args.h11_max_header_count,
        error_form_of=error_forms(surfaces, OPENAI.error_form),
        on_end=service.record,
    )
    return app


def _service(
    engine: AsyncEngine, builder: PromptBuilder, config: EngineConfig, args: ServerArgs, tracer: Tracer | None
) -> Service:
    from trifocal.api.service import Service
    from trifocal.http.access_log import AccessLog
    from trifocal.http.admission import Admission
    from trifocal.metrics import Metrics, cache_config

    model_name = (args.served_model_name or [config.model.spec.path])[0]
    metrics, admission = Metrics(model_name, cache_config(config)), Admission(args)
    metrics.gauge("requests_queued", "requests that wait for their first token", lambda: admission.num_queued)
    metrics.gauge("tokens_queued", "prompt tokens of the requests that wait", lambda: admission.num_queued_tokens)
    metrics.gauge("media_bytes_in_flight", "bytes that bodies and media of requests hold", lambda: admission.num_bytes)
    return Service(engine, builder, config, args, metrics, admission, AccessLog(args), tracer)


def _allow_origins(app: FastAPI, args: ServerArgs) -> None:
    from starlette.middleware.cors import CORSMiddleware

    app.add_middleware(
        CORSMiddleware,
        allow_origins=args.allowed_origins,
        allow_methods=args.allowed_methods,
        allow_headers=args.allowed_headers,
        allow_credentials=args.allow_credentials,
        expose_headers=["x-request-id", "x-ignored-fields", "retry-after"],
    )


async def serve(config: EngineConfig, args: ServerArgs) -> None:
    """Serve until SIGTERM or SIGINT; returns then. A second signal does not wait for running answers.

    Raises `ConfigError`; `SystemExit(1)` if the engine cannot start or dies, after running streams have had their
    error event. The port is taken first, but nobody can connect before the engine is ready.
    """
    from trifocal.http.listen import bind

    few_heaps()
    no_large_leftovers()
    try:
        with _stop_event() as told:
            async with AsyncExitStack() as scope:
                listener = scope.enter_context(bind(args))
                if args.uds is not None:
                    scope.callback(Path(args.uds).unlink, missing_ok=True)
                starting = asyncio.create_task(_start(scope, config, args))
                if not await _ends_before(starting, told):
                    return
                engine, app = starting.result()
                scope.callback(asyncio.create_task(_tidy_up()).cancel)
                await _serve_http(engine, app, listener, args, told)
    except EngineDeadError as error:
        logger.error("the engine is dead: %s", error)
        raise SystemExit(1) from None


@contextmanager
def _stop_event() -> Iterator[asyncio.Event]:
    """An event that is set whenever a signal asks the process to stop."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def _start(scope: AsyncExitStack, config: EngineConfig, args: ServerArgs) -> tuple[AsyncEngine, FastAPI]:
    """Start the engine, import and build the rest meanwhile; `scope` ends both."""
    thread = ThreadPoolExecutor(1)
    built = thread.submit(_build, config, args)
    thread.shutdown(wait=False)
    starting = asyncio.create_task(AsyncEngine.start(config, lambda: built.result()[0].tokenizer))
    scope.push_async_callback(_end, starting)
    builder, tracer = await asyncio.wrap_future(built)
    scope.push_async_callback(builder.aclose)
    if tracer is not None:
        scope.push_async_callback(asyncio.to_thread, tracer.close)
    engine = await starting
    return engine, create_app(engine, builder, config, args, tracer)


def _build(config: EngineConfig, args: ServerArgs) -> tuple[PromptBuilder, Tracer | None]:
    from trifocal.api.openai import surface  # noqa: F401  (imported here, while the engine loads)
    from trifocal.http.tracing import Tracer
    from trifocal.media.fetch.policy import FetchPolicy
    from trifocal.prompt.builder import PromptBuilder

    policy = FetchPolicy.from_flags(
        args.allowed_local_media_path, args.allowed_media_domains, args.allowed_media_networks, args.media_proxy
    )
    builder = PromptBuilder(
        config,
        fetch_policy=policy,
        chat_template=args.chat_template,
        chat_template_content_format=args.chat_template_content_format,
        chat_template_kwargs=args.default_chat_template_kwargs,
    )
    return builder, Tracer.to_endpoint(args.otlp_traces_endpoint) if args.otlp_traces_endpoint else None


async def _end(starting: asyncio.Task[AsyncEngine]) -> None:
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled() and starting.exception() is None:
        await starting.result().shutdown()


async def _ends_before(task: asyncio.Task[tuple[AsyncEngine, FastAPI]], event: asyncio.Event) -> bool:
    """Whether `task` ends before `event` is set; it is cancelled otherwise."""
    waiter = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        return True
    task.cancel()
    await asyncio.wait({task})
    return False


async def _serve_http(
    engine: AsyncEngine, app: FastAPI, listener: socket.socket, args: ServerArgs, told: asyncio.Event
) -> None:
    """Serve until told to stop or the engine dies; `EngineDeadError` then, once its streams have ended."""
    from trifocal.api.openai.errors import error_form
    from trifocal.http.listen import HttpServer, announce

    admission: Admission = app.state.service.admission
    server = HttpServer(app, args, lambda: announce(listener, args), error_form)
    serving = asyncio.create_task(server.serve([listener]))
    await _wait_any(serving, told, engine.died)
    has_died = engine.died.is_set()
    if not has_died:
        logger.info("stopping: new requests are refused, running ones have %g s to finish", args.shutdown_timeout)
        admission.drain()
        told.clear()
        await _wait_any(serving, told, engine.died, admission.emptied, timeout_s=args.shutdown_timeout)
    server.should_exit = True  # no new connections
    if not has_died:
        await engine.shutdown()  # what still runs ends with an error event
    await serving
    if has_died:
        await engine.check_health()


async def _tidy_up() -> None:
    """Bodies and pictures of all sizes leave holes in the heap; what they held goes back to the system."""
    while True:
        await asyncio.sleep(_TIDY_EVERY_S)
        await asyncio.to_thread(give_back)


async def _wait_any(serving: asyncio.Task[None], *events: asyncio.Event, timeout_s: float | None = None) -> None:
    waiters = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait({serving, *waiters}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters:
        waiter.cancel()
