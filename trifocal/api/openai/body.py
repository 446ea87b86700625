"""A body in OpenAI's form: parsed, its fields judged, the lengths of its lists checked."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from trifocal.api.openai.extras import declared, judge
from trifocal.api.openai.schemas import Body, GenerationBody
from trifocal.api.service import service_of
from trifocal.api.validation import explain
from trifocal.config.server import ServerArgs
from trifocal.errors import RequestError
from trifocal.http.body import read_json
from trifocal.http.context import context_of
from trifocal.prompt.ignored_fields import Ignored

B = TypeVar("B", bound=Body)


async def read_body(request: Request, model: type[B]) -> B:
    """The body as a `model`, with the fields that have no effect noted in the request's context. See `read_json`."""
    service = service_of(request)
    parsed = await read_json(
        request, service.admission, service.args, lambda data: parse_body(data, model, service.args)
    )
    body, context_of(request).ignored = parsed
    return body


def parse_body(data: bytes, model: type[B], args: ServerArgs) -> tuple[B, tuple[Ignored, ...]]:
    """The body as a `model`, and its fields that have no effect.

    Raises `RequestError` for one that would change the answer and is not acted on, too.
    """
    try:
        body = model.model_validate_json(data)
    except ValidationError as error:
        raise explain(error) from None
    if args.enable_force_include_usage and isinstance(body, GenerationBody):
        body.force_usage()
    ignored = judge(body, body.without_effect, of_others=body.of_others, is_strict=args.strict_request_fields)
    _check_counts(body, args)
    return body, ignored


def _check_counts(body: Body, args: ServerArgs) -> None:
    """Raise `RequestError` for lists that are too long. In the thread: later they are looked at on the event loop."""
    for name in ("stop", "stop_token_ids", "logit_bias", "bad_words", "allowed_token_ids"):
        flag = "stop_strings" if name == "stop" else name
        value, most = declared(body, name), getattr(args, f"max_{flag}")
        if isinstance(value, list | dict) and len(value) > most:
            raise RequestError(f"{name} must have at most {most} entries (--max-{flag.replace('_', '-')})", param=name)
