"""Requests made of the server's own OpenAPI document: ones that it allows, and ones that break it somewhere.

Schemathesis makes them and judges the answers: each must have a status, media type and body that the document names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks, openapi
from schemathesis.core.failures import FailureGroup

from tools.hostile.case import Call

_ANYWHERE = "http://127.0.0.1"  # the case's own URL; only its path is used
_CHECKS = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
_MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


def document_calls(document: dict[str, Any], number: int, chance: int) -> Iterator[tuple[str, Call]]:
    """Up to `number` named requests of each operation and mode; the same ones for the same seed `chance`."""
    for found in openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        for mode in _MODES:
            for count, case in enumerate(_cases(operation, mode, number, chance)):
                yield f"document/{operation.label}/{mode.value}/{count}", _call(case)


def _cases(
    operation: schemathesis.APIOperation, mode: GenerationMode, number: int, chance: int
) -> list[schemathesis.Case]:
    cases: list[schemathesis.Case] = []

    @seed(chance)
    @settings(
        max_examples=number, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: schemathesis.Case) -> None:
        cases.append(case)

    try:
        collect()
    except Unsatisfiable:  # a probe takes nothing that could be wrong
        return []
    return cases


def _call(case: schemathesis.Case) -> Call:
    sent = case.as_transport_kwargs(base_url=_ANYWHERE)
    body = json.dumps(sent["json"]).encode() if "json" in sent else sent.get("data") or b""
    path = sent["url"].removeprefix(_ANYWHERE)
    if sent.get("params"):
        path += "?" + urlencode(sent["params"], doseq=True, errors="surrogatepass")
    kept = ("content-type", "authorization")
    headers = tuple((name, value) for name, value in sent["headers"].items() if name.lower() in kept)
    return Call(body, path, case.method, headers, check=lambda answer: _complaint(case, answer))


def _complaint(case: schemathesis.Case, answer: httpx.Response) -> str | None:
    """What the document has against an answer."""
    chosen = checks.CHECKS.get_by_names(_CHECKS)
    try:
        case.validate_response(answer, checks=chosen)
    except FailureGroup as failures:
        return "; ".join(f"{failure.title}: {failure.message[:200]}" for failure in failures.exceptions)
    return None
