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
        "server",
        "path under which a reverse proxy shows the server, e.g. /llm; the proxy may strip it or keep it",
        None,
    )
    served_model_name: list[str] | None = arg(
        "server", "names that requests may give as model; default: --model as written", None
    )
    chat_template: str | None = arg("server", "file or text of a Jinja chat template that replaces the model's", None)
    chat_template_content_format: str = arg(
        "server", "form of a message's content in the template: string, openai (list of parts) or auto (detected)",
        "auto", choices=list(CONTENT_FORMATS),
    )  # fmt: skip
    default_chat_template_kwargs: dict[str, Any] = arg(
        "server",
        'JSON of chat_template_kwargs for every request, e.g. {"enable_thinking": false}; a request\'s own win',
        {},
    )
    response_role: str = arg("server", "role of the answers in chat completions", "assistant")
    enable_force_include_usage: bool = arg(
        "server", "end every stream with its usage, even if the request does not ask for it", False
    )
    allowed_local_media_path: str | None = arg("server", "folder under which file:// media may be read", None)
    allowed_media_domains: list[str] | None = arg(
        "server", "the only hosts that media may be fetched from; they may lie in private networks", None
    )
    allowed_media_networks: list[str] | None = arg(
        "server", "private networks that media may be fetched from, e.g. 10.0.0.0/8", None
    )
    media_proxy: str | None = arg(
        "server", "http(s) proxy for fetching media; the proxy then decides which addresses can be reached", None
    )

    max_queued_requests: int = arg(
        "limits", "most requests that may wait for their first token; beyond: 503 with Retry-After", 2048,
        also=["max_num_queued_reqs"],
    )  # fmt: skip
    max_queued_tokens: int = arg(
        "limits", "most prompt tokens of these requests together; beyond: 503 (default 4 Mi; one request always fits)",
        4 << 20, also=["max_num_queued_tokens"],
    )  # fmt: skip
    max_request_bytes: int = arg("limits", "largest request body; beyond: 413 (default 256 MiB)", 256 << 20)
    max_request_values: int = arg(
        "limits", "most JSON values in a request's body, counted by commas and opening brackets, also those inside "
        "texts; beyond: 413 (default 1 Mi)", 1 << 20,
    )  # fmt: skip
    max_media_bytes_in_flight: int = arg(
        "limits", "most bytes that bodies and media of all requests may hold while they are read, fetched and "
        "preprocessed; beyond: 503 (default 2 GiB)", 2 << 30,
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
    queue_timeout: float = arg(
        "timeouts", "seconds from the end of preprocessing to the first text; then 504; 0: no limit", 1800.0
    )
    request_timeout: float = arg(
        "timeouts", "seconds for a whole request; then 504, or an error event in a stream; 0: no limit", 0.0
    )
    health_timeout: float = arg(
        "timeouts", "seconds without a step while there is work, after which /health is a 503", 120.0
    )
    shutdown_timeout: float = arg("timeouts", "seconds that running requests get to finish after SIGTERM", 5.0)

    api_key: list[str] | None = arg(
        "exposure", "keys; every request must bring one of them as a bearer token, except on the health routes. "
        "VLLM_API_KEY is safer: other users can see command lines", None,
    )  # fmt: skip
    disable_fastapi_docs: bool = arg("exposure", "publish no OpenAPI document at /openapi.json", False)
    ssl_keyfile: str | None = arg("exposure", "TLS key file", None)
    ssl_certfile: str | None = arg("exposure", "TLS certificate file", None)
    ssl_ca_certs: str | None = arg(
        "exposure", "file of the CA certificates that must sign a client's certificate", None
    )
    ssl_cert_reqs: int = arg(
        "exposure", "client certificates, as in Python's ssl: 0 none, 1 checked if sent, 2 required", 0
    )
    ssl_ciphers: str | None = arg("exposure", "OpenSSL cipher names, for TLS 1.2 and below", None)
    allowed_origins: list[str] = arg(
        "exposure", 'origins of web pages that may call the server (CORS), names or JSON; default: none; "*": all', []
    )
    allowed_methods: list[str] = arg("exposure", "methods that such pages may use", ["*"])
    allowed_headers: list[str] = arg("exposure", "headers that such pages may send", ["*"])
    allow_credentials: bool = arg("exposure", "let such pages send cookies and client certificates", False)

    uvicorn_log_level: str = arg(
        "observability", "log level of the HTTP server; above info there is no access log", "info", choices=_LEVELS
    )
    access_log: str = arg(
        "observability",
        "format of the one line for each request: text (key=value), json, or none",
        "text",
        choices=["text", "json", "none"],
    )
    disable_uvicorn_access_log: bool = arg("observability", "the same as --access-log none", False)
    disable_access_log_for_endpoints: str = arg(
        "observability", "comma list of paths that are logged only when they fail",
        "/health,/live,/ready,/ping,/metrics",
    )  # fmt: skip
    enable_log_outputs: bool = arg(
        "observability",
        "write the text of every answer to the log; file paths are shortened, as everywhere in the log",
        False,
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
                "{max_media_bytes_in_flight} {} must be at least {max_request_bytes} {}: otherwise the largest request "
                "could never be accepted",
                self.max_media_bytes_in_flight,
                self.max_request_bytes,
            )
        if self.api_key is not None and not all(self.api_key):
            raise ArgumentError(
                "{api_key} is empty, which would let everybody in: give a key, or leave the flag out if that is meant"
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
                "{allow_credentials} needs {allowed_origins} with names, not '*': else any page could send credentials"
            )

    @property
    def logs_access(self) -> bool:
        is_quiet = _LEVELS.index(self.uvicorn_log_level) < _LEVELS.index("info")
        return self.access_log != "none" and not self.disable_uvicorn_access_log and not is_quiet
