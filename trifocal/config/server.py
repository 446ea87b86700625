"""Arguments of the HTTP server; those of the engine are `trifocal.config.engine.EngineArgs`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields
from typing import Any

from trifocal.config.arguments import arg, fit_fields
from trifocal.errors import ArgumentError

CONTENT_FORMATS = ("auto", "string", "openai")
_LEVELS = ["critical", "error", "warning", "info", "debug", "trace"]
_MAX_PORT = 65535
_MAY_BE_ZERO = ("port", "ssl_cert_reqs", "max_logit_bias", "max_stop_strings", "max_stop_token_ids", "max_bad_words")


@dataclass(frozen=True, kw_only=True)
class ServerArgs:
    """Flags of the server beside the engine's; field metadata carries help and group for the command line.

    Raises `ConfigError` for values that cannot work or contradict each other.
    """

    host: str | None = arg("server", "address to listen on (default: all interfaces, as vLLM)", None)
    port: int = arg("server", "port to listen on; 0: any free one", 8000)
    uds: str | None = arg("server", "path of a Unix socket to listen on instead; --host and --port are not used", None)
    root_path: str | None = arg(
        "server", "path under which a proxy in front shows the server, e.g. /llm; it may cut it off or leave it", None
    )
    served_model_name: list[str] | None = arg(
        "server", "names that requests may give as model; default: --model as written", None
    )
    chat_template: str | None = arg("server", "file (or text) of a Jinja chat template to use instead", None)
    chat_template_content_format: str = arg(
        "server", "what the template takes as a message's content: string, or openai (list of parts); auto: found out",
        "auto", choices=list(CONTENT_FORMATS),
    )  # fmt: skip
    default_chat_template_kwargs: dict[str, Any] = arg(
        "server",
        'JSON of chat_template_kwargs for every request, e.g. {"enable_thinking": false}; a request\'s win',
        {},
    )
    response_role: str = arg("server", "role of the messages that are answered", "assistant")
    enable_force_include_usage: bool = arg("server", "end every stream with its usage, asked for or not", False)
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

    max_queued_requests: int = arg(
        "limits", "most requests that may be without their first token; beyond: 503 with Retry-After", 2048,
        also=["max_num_queued_reqs"],
    )  # fmt: skip
    max_queued_tokens: int = arg(
        "limits", "most prompt tokens of such requests together; beyond: 503 (default 4 Mi; one request always fits)",
        4 << 20, also=["max_num_queued_tokens"],
    )  # fmt: skip
    max_request_bytes: int = arg("limits", "largest request body; beyond: 413 (default 256 MiB)", 256 << 20)
    max_request_values: int = arg(
        "limits", "most JSON values of a request's body, told by its commas and opening brackets, those in texts too; "
        "beyond: 413 (default 1 Mi)", 1 << 20,
    )  # fmt: skip
    max_media_bytes_in_flight: int = arg(
        "limits", "bodies while they are read, media fetched and preprocessed, of all requests together, in bytes; "
        "beyond: 503 (default 2 GiB)", 2 << 30,
    )  # fmt: skip
    max_n: int = arg("limits", "largest n of a request", 128)
    max_answers: int = arg("limits", "most answers of one completion request: prompts times n", 1024)
    max_stop_strings: int = arg("limits", "most stop strings of a request", 64)
    max_stop_token_ids: int = arg("limits", "most stop_token_ids of a request", 1024)
    max_bad_words: int = arg("limits", "most bad_words of a request", 1024)
    max_allowed_token_ids: int = arg("limits", "most allowed_token_ids of a request", 4096)
    strict_request_fields: bool = arg(
        "limits", "answer an unknown field of a request with a 400; by default it is named in x-ignored-fields", False
    )
    max_logit_bias: int = arg("limits", "most entries of a request's logit_bias", 1024)
    h11_max_incomplete_event_size: int = arg(
        "limits", "most bytes of a request's headers; beyond: 431 (default 64 KiB)", 64 << 10
    )
    h11_max_header_count: int = arg("limits", "most headers of a request; beyond: 431", 256)

    body_timeout: float = arg("timeouts", "seconds for a request's body to arrive; then 408; 0: no limit", 300.0)
    preprocessing_timeout: float = arg(
        "timeouts", "seconds for fetching, decoding and tokenizing a request; then 504; 0: no limit", 300.0
    )
    queue_timeout: float = arg("timeouts", "seconds from then to a request's first text; then 504; 0: no limit", 1800.0)
    request_timeout: float = arg(
        "timeouts", "seconds for a whole request; then 504, or an error event in a stream; 0: no limit", 0.0
    )
    health_timeout: float = arg("timeouts", "seconds without a step, with work to do, until /health is a 503", 120.0)
    shutdown_timeout: float = arg("timeouts", "seconds that running requests get to finish after SIGTERM", 5.0)

    api_key: list[str] | None = arg(
        "exposure", "keys of which every request must bring one as a bearer token (the health routes excepted); "
        "better given by VLLM_API_KEY: command lines are visible to other users", None,
    )  # fmt: skip
    disable_fastapi_docs: bool = arg("exposure", "publish no OpenAPI document at /openapi.json", False)
    ssl_keyfile: str | None = arg("exposure", "TLS key file", None)
    ssl_certfile: str | None = arg("exposure", "TLS certificate file", None)
    ssl_ca_certs: str | None = arg("exposure", "certificates of those who may sign a client's certificate", None)
    ssl_cert_reqs: int = arg(
        "exposure", "client certificates, as Python's ssl: 0 none, 1 checked if brought, 2 required", 0
    )
    ssl_ciphers: str | None = arg("exposure", "OpenSSL's names of ciphers to use, for TLS 1.2 and below", None)
    allowed_origins: list[str] = arg(
        "exposure", 'origins of web pages that may call (CORS), names or JSON; default: none; "*": all', []
    )
    allowed_methods: list[str] = arg("exposure", "methods that such pages may use", ["*"])
    allowed_headers: list[str] = arg("exposure", "headers that such pages may send", ["*"])
    allow_credentials: bool = arg("exposure", "let such pages send cookies and client certificates", False)

    uvicorn_log_level: str = arg(
        "observability", "log level of the HTTP server; above info there is no access log", "info", choices=_LEVELS
    )
    access_log: str = arg(
        "observability", "one line a request: key=value, JSON, or none", "text", choices=["text", "json", "none"]
    )
    disable_uvicorn_access_log: bool = arg("observability", "the same as --access-log none", False)
    disable_access_log_for_endpoints: str = arg(
        "observability", "comma list of paths without access log unless they fail",
        "/health,/live,/ready,/ping,/metrics",
    )  # fmt: skip
    enable_log_outputs: bool = arg(
        "observability", "write the text of every answer to the log, paths in it cut as everywhere there", False
    )
    otlp_traces_endpoint: str | None = arg(
        "observability", "URL to which OpenTelemetry traces are sent, e.g. http://collector:4318/v1/traces; needs "
        "pip install 'trifocal[otel]'", None,
    )  # fmt: skip

    def __post_init__(self) -> None:
        fit_fields(self)
        for item in fields(self):
            value = getattr(self, item.name)
            least = 0 if item.type == "float" or item.name in _MAY_BE_ZERO else 1
            if item.type in ("int", "float") and not least <= value < float("inf"):
                raise ArgumentError(f"{{{item.name}}} must be at least {{}}, got {{}}", least, value)
            choices = item.metadata.get("choices", (value,))
            if value not in choices:
                raise ArgumentError(f"{{{item.name}}} must be one of {{}}, got {{!r}}", ", ".join(choices), value)
        if self.port > _MAX_PORT:
            raise ArgumentError("{port} must be at most {}, got {}", _MAX_PORT, self.port)
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ArgumentError("{root_path} must begin with a slash and end without one, got {!r}", self.root_path)
        for name, texts in (
            ("response_role", [self.response_role]),
            ("served_model_name", self.served_model_name),
            ("uds", None if self.uds is None else [self.uds]),
        ):
            if texts is not None and not all(texts):
                raise ArgumentError(f"{{{name}}} is empty")
        if self.max_media_bytes_in_flight < self.max_request_bytes:
            raise ArgumentError(
                "{max_media_bytes_in_flight} {} must be at least {max_request_bytes} {}, or the largest request could "
                "never be taken",
                self.max_media_bytes_in_flight,
                self.max_request_bytes,
            )
        if self.api_key is not None and not all(self.api_key):
            raise ArgumentError(
                "{api_key} is empty: the server would be open to everybody; leave the flag out for that"
            )
        self._check_tls()
        self._check_origins()

    def _check_tls(self) -> None:
        if self.ssl_certfile is None:
            for name in ("ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"):
                if getattr(self, name):
                    raise ArgumentError(f"{{{name}}} needs {{ssl_certfile}}")
        if self.ssl_cert_reqs not in list(ssl.VerifyMode):
            raise ArgumentError("{ssl_cert_reqs} must be 0, 1 or 2, got {}", self.ssl_cert_reqs)
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise ArgumentError(
                "{ssl_cert_reqs} {} needs {ssl_ca_certs} to check certificates with", self.ssl_cert_reqs
            )

    def _check_origins(self) -> None:
        if self.allow_credentials and (not self.allowed_origins or "*" in self.allowed_origins):
            raise ArgumentError(
                "{allow_credentials} needs {allowed_origins} that name origins, not '*': any page could"
            )

    @property
    def logs_access(self) -> bool:
        """Whether there is an access log."""
        is_quiet = _LEVELS.index(self.uvicorn_log_level) < _LEVELS.index("info")
        return self.access_log != "none" and not self.disable_uvicorn_access_log and not is_quiet
