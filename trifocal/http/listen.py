"""The listening side: the socket, TLS, and uvicorn as we run it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import uvicorn

from trifocal.config.server import ServerArgs
from trifocal.errors import ConfigError
from trifocal.http.connection import Connection
from trifocal.http.errors import ErrorForm
from trifocal.log import get_logger

logger = get_logger(__name__)

LAST_WORDS_S = 2.0  # for error events to reach their readers once the engine is gone
_BACKLOG = 2048
_MAX_FILES = 1 << 16
_KEEP_ALIVE_S = 30  # uvicorn's five seconds race with clients that reuse a connection


def bind(args: ServerArgs) -> socket.socket:
    """A bound socket that does not listen yet: a port in use shows at once, a connection is refused until ready.

    Raises `ConfigError`, for unusable TLS files too.
    """
    _check_tls(args)
    _raise_file_limit()
    if args.uds is not None:
        return _bind_path(args.uds)
    host = args.host or "0.0.0.0"  # all interfaces, as vLLM
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it, tokens come in bursts 40 ms apart.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, args.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"cannot listen on --host {host} --port {args.port}: {error}") from None
    return listener


def _bind_path(path: str) -> socket.socket:
    """A Unix socket. One that a server left behind is replaced; one that somebody listens on is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_leftover(path)
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on --uds {path}: {error}") from None
    return listener


def _remove_leftover(path: str) -> None:
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()


def _raise_file_limit() -> None:
    """Each client takes a file descriptor, and 1024 are few: as many as may be had without asking anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_tls(args: ServerArgs) -> None:
    if args.ssl_certfile is None:
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--ssl-certfile {args.ssl_certfile}: {error}") from None
    if args.ssl_ciphers is not None:
        try:
            context.set_ciphers(args.ssl_ciphers)
        except ssl.SSLError as error:
            raise ConfigError(f"--ssl-ciphers {args.ssl_ciphers}: {error}") from None
    if args.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(args.ssl_ca_certs)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--ssl-ca-certs {args.ssl_ca_certs}: {error}") from None


def address(listener: socket.socket, args: ServerArgs) -> str:
    """The URL under which `listener` is reached; the path of a Unix socket."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{args.uds}"
    host, port = listener.getsockname()[:2]
    scheme = "http" if args.ssl_certfile is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def announce(listener: socket.socket, args: ServerArgs) -> None:
    """Say that the server is ready, and to whom it is open."""
    is_local = listener.family == socket.AF_UNIX or ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    if not args.api_key and not is_local:
        logger.warning("there is no --api-key: anyone who can reach the port can use this server")
    logger.info("ready: %s", address(listener, args))


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handling: it ends when `should_exit` is set, not when a signal comes.

    `error_form` writes the errors of what is no request yet.
    """

    def __init__(
        self, app: Callable[..., object], args: ServerArgs, on_started: Callable[[], None], error_form: ErrorForm
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level=args.uvicorn_log_level,
            access_log=False,  # there is one of our own
            http=partial(Connection, error_form=error_form),  # type: ignore[arg-type]  # called as the class is
            lifespan="off",
            ws="none",
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(LAST_WORDS_S),
            ssl_keyfile=args.ssl_keyfile,
            ssl_certfile=args.ssl_certfile,
            ssl_ca_certs=args.ssl_ca_certs,
            ssl_cert_reqs=args.ssl_cert_reqs,
            ssl_ciphers=args.ssl_ciphers,
            h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        )
        super().__init__(config)
        self._on_started = on_started
        _share_log_handlers(args.uvicorn_log_level)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn would raise them again at the end, and the exit status would not be 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()


def _share_log_handlers(level: str) -> None:
    logger = logging.getLogger("uvicorn")
    logger.handlers = list(logging.getLogger("trifocal").handlers)
    if level == "info":  # its start and stop lines repeat ours
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
