"""Arguments of the HTTP server; those of the engine are `trifocal.config.EngineArgs`."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.config import arg


@dataclass(frozen=True, kw_only=True)
class ServerArgs:
    """Flags of the server beside the engine's; field metadata carries help and group for the command line."""

    host: str | None = arg("server", "address to listen on (default: all interfaces, as vLLM)", None)
    port: int = arg("server", "port to listen on; 0: any free one", 8000)
    served_model_name: list[str] | None = arg(
        "server", "names that requests may give as model; default: --model as written", None
    )
    api_key: str | None = arg("server", "key that every request must bring as a bearer token", None)
    chat_template: str | None = arg("server", "file (or text) of a Jinja chat template to use instead", None)
    allowed_local_media_path: str | None = arg("server", "folder under which file:// media may be read", None)
    allowed_media_domains: list[str] | None = arg(
        "server", "hosts that media may be fetched from, these only; they may lie on private networks", None
    )
    allowed_media_networks: list[str] | None = arg(
        "server", "networks that media may be fetched from though not public, e.g. 10.0.0.0/8", None
    )
    media_proxy: str | None = arg(
        "server", "http(s) proxy to fetch media through; it then decides which addresses can be reached", None
    )
    max_request_bytes: int = arg("server", "largest request body; beyond it: 413 (default 256 MiB)", 256 << 20)
    shutdown_timeout: float = arg("server", "seconds that running requests get to finish after SIGTERM", 5.0)
    uvicorn_log_level: str = arg(
        "server", "log level of the HTTP server", "info",
        choices=["critical", "error", "warning", "info", "debug", "trace"],
    )  # fmt: skip
    ssl_keyfile: str | None = arg("server", "TLS key file", None)
    ssl_certfile: str | None = arg("server", "TLS certificate file", None)
