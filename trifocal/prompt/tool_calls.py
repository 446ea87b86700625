"""Tool calls in the messages of a chat, checked, with their arguments as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trifocal.errors import RequestError
from trifocal.log import get_logger

_log = get_logger(__name__)


def string(value: object, where: str) -> str:
    """`value`, found at `where`. Raises `RequestError` if it is no string."""
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string, got {type(value).__name__}", param=where)
    return value


def _check_types(call: Mapping[str, Any], where: str) -> None:
    for name in ("id", "type"):
        if call.get(name) is not None:
            string(call[name], f"{where}.{name}")
    arguments, path = call["function"].get("arguments"), f"{where}.function.arguments"
    if not isinstance(arguments, str | Mapping | None):
        raise RequestError(f"{path} must be JSON text or an object, got {type(arguments).__name__}", param=path)


def parsed_tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Calls with their arguments as objects, which is what templates expect; clients send them as JSON text."""
    if not isinstance(calls, list):
        raise RequestError(f"{where} must be a list", param=where)
    parsed = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RequestError(f"{where}[{index}] must have a function with a name", param=f"{where}[{index}]")
        _check_types(call, f"{where}[{index}]")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"{where}[{index}].function.arguments")
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed


def _parsed(arguments: str, where: str) -> Any:
    """What the JSON text says. One that a model has spoilt stays text: it must not block the rest of its chat."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        _log.warning("%s is not JSON (%s); the chat template gets it as text", where, reason)
        return arguments
