"""The errors that Trifocal raises on purpose; each says who, which field, what was wrong and what to do."""

from __future__ import annotations


class TrifocalError(Exception):
    """Base of every error that Trifocal raises on purpose."""


class ConfigError(TrifocalError):
    """A flag, an environment variable or a checkpoint folder that cannot be used; the command line exits with 2."""


class NotAvailableYetError(ConfigError):
    """A known option whose feature is not built yet: refused, never ignored in silence."""

    def __init__(self, what: str) -> None:
        super().__init__(f"not available yet: {what}")


class RequestError(TrifocalError):
    """A request that is refused; nothing else is disturbed by it.

    `param` names the offending field as the client wrote it, `status` is the HTTP status, `code` a stable word.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


class EngineDeadError(TrifocalError):
    """The engine is gone, or another process has it; nothing can be generated here any more."""
