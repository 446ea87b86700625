"""The bodies of requests, as OpenAI and vLLM name their fields.

`null` means the default everywhere. Values out of range raise from `SamplingParams`, which knows the ranges.

Their JSON Schemas are the OpenAPI document's (`openapi.py`). What pydantic cannot see, because a validator or another
module checks it, it is told: by `json_schema_input_type` beside the validator, and by `bounds.tell`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trifocal.api.openai.bounds import tell
from trifocal.api.openai.field_types import (
    TOKEN_ID,
    Biases,
    Flag,
    Int32,
    Int64,
    Ints,
    MediaIo,
    Messages,
    Strings,
    Text,
    TokenId,
    Words,
    is_list_of,
    whole_items,
)
from trifocal.api.validation import with_param
from trifocal.errors import RequestError
from trifocal.sampling_params import SamplingParams

SAMPLING_FIELDS = (
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "skip_special_tokens",
    "include_stop_str_in_output", "prompt_logprobs", "allowed_token_ids", "bad_words",
)  # fmt: skip


class Body(BaseModel):
    """What every request may carry. Fields beyond the declared ones land in `model_extra`; `extras` judges them."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, json_schema_extra=tell)

    of_others: ClassVar[frozenset[str]] = frozenset()
    """Fields of other routes that cannot change the answer of this one."""

    model: str | None = None

    @property
    def without_effect(self) -> list[str]:
        """Fields that were given and are known, but change nothing beside the others."""
        return []


class StreamOptions(BaseModel):
    """`stream_options`: a last chunk with the usage, or the usage so far in every chunk."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: Flag | None = None
    continuous_usage_stats: Flag | None = None


class GenerationBody(Body):
    """Fields that chat and completions share."""

    n: Int32 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    stop: Strings = None
    stop_token_ids: Ints | None = None
    ignore_eos: Flag | None = None
    max_tokens: Int32 | None = None
    min_tokens: Int32 | None = None
    logit_bias: Biases = None
    prompt_logprobs: Int32 | None = None
    allowed_token_ids: Annotated[Ints, Field(min_length=1)] | None = None
    bad_words: Words | None = None
    skip_special_tokens: Flag | None = None
    include_stop_str_in_output: Flag | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None

    @model_validator(mode="after")
    def _check_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("prompt_logprobs are not available in a stream; leave out stream or prompt_logprobs",
                               param="prompt_logprobs")  # fmt: skip
        return self

    @property
    def without_effect(self) -> list[str]:
        """Usage so far is a part of usage."""
        options = self.stream_options
        is_alone = options is not None and options.continuous_usage_stats and not options.include_usage
        return ["stream_options.continuous_usage_stats"] if is_alone else []

    @property
    def renamed(self) -> dict[str, str]:
        """Fields of `SamplingParams` that have other names here."""
        return {}

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def force_usage(self) -> None:
        """Let a stream end with a chunk of usage, whatever the client said of it."""
        if self.stream:
            self.stream_options = self.stream_options or StreamOptions()
            self.stream_options.include_usage = True

    @property
    def has_running_usage(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        return self.includes_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def to_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """The fields over `defaults`. Raises `RequestError` that names fields of this body."""
        try:
            return self.asked(defaults)
        except RequestError as error:
            raise with_param(error, self.renamed) from None

    @abstractmethod
    def asked(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """What `to_params` gives; errors name fields of `SamplingParams`."""

    def sampling(self, defaults: Mapping[str, Any], *, logprobs: int | None) -> SamplingParams:
        given = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        return SamplingParams(**{**defaults, **given}, logprobs=logprobs, logit_bias=self._token_bias())

    def _token_bias(self) -> dict[int, float] | None:
        bias = self.logit_bias or {}
        for token in bias:
            if not TOKEN_ID.fullmatch(token):
                raise RequestError(f"logit_bias: keys must be token ids, got {token[:40]!r}", param="logit_bias")
        return {int(token): value for token, value in bias.items()} or None


class MessagesBody(Body):
    """Messages and how to render them."""

    messages: Messages | None = Field(default=None, min_length=1)
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: MediaIo = None

    @model_validator(mode="after")
    def _check_turn(self) -> MessagesBody:
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message exclude each other", param="continue_final_message"
            )
        return self


class ChatBody(MessagesBody, GenerationBody):
    """POST /v1/chat/completions."""

    messages: Messages = Field(min_length=1)
    max_completion_tokens: Int32 | None = None
    logprobs: Flag | None = None
    top_logprobs: Int32 | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatBody:
        if self.top_logprobs is not None and self.top_logprobs != 0 and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return self

    def asked(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Without any limit on tokens the answer may fill the context."""
        limit = self.max_completion_tokens
        body = self if limit is None else self.model_copy(update={"max_tokens": limit})
        num_rivals = (self.top_logprobs or 0) if self.logprobs else None
        return body.sampling({"max_tokens": None, **defaults}, logprobs=num_rivals)

    @property
    def renamed(self) -> dict[str, str]:
        """Fields of `SamplingParams` by the names that this body has for them."""
        names = {"logprobs": "top_logprobs"}
        return names if self.max_completion_tokens is None else {**names, "max_tokens": "max_completion_tokens"}


TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompts = Text | TokenIds | Annotated[list[Text | TokenIds], Field(min_length=1)]
_MAX_TOKEN_ID = (1 << 31) - 1


def _is_prompt(value: object) -> bool:
    """Whether `value` is a text or a list of token ids, and not empty. Those that no vocabulary has are none."""
    if not isinstance(value, list) or not value:
        return isinstance(value, str) and value != ""
    return is_list_of(value, int) and min(value) >= 0 and max(value) <= _MAX_TOKEN_ID


class CompletionBody(GenerationBody):
    """POST /v1/completions. `prompt` is one text, one list of token ids, or a list of either."""

    prompt: Any
    logprobs: Int32 | None = None
    echo: Flag | None = None
    add_special_tokens: Flag | None = None

    @field_validator("prompt", mode="before", json_schema_input_type=Prompts)
    @classmethod
    def _check_prompt(cls, value: object) -> object:
        value = whole_items(value)
        if _is_prompt(value):
            return value
        prompts = [whole_items(item) for item in value] if isinstance(value, list) else []
        if not prompts or not all(map(_is_prompt, prompts)):
            raise ValueError("must be a text, a list of token ids, or a list of either, and none may be empty")
        return prompts

    @property
    def prompts(self) -> list[str | list[int]]:
        """`prompt` as the list that it stands for."""
        return [self.prompt] if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else self.prompt

    def asked(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """16 tokens where no one says otherwise. An echo with `logprobs` has those of the prompt.

        `max_tokens` may be 0 for an echo alone, too; log-probabilities that nobody reads are computed then.
        """
        body = self
        if self.echo and (self.logprobs is not None or self.max_tokens == 0):
            asked = [number for number in (self.logprobs, self.prompt_logprobs, 0) if number is not None]
            body = self.model_copy(update={"prompt_logprobs": -1 if min(asked) < 0 else max(asked)})
        return body.sampling(defaults, logprobs=self.logprobs)

    @property
    def renamed(self) -> dict[str, str]:
        """`prompt_logprobs` are the `logprobs` of an echo."""
        return {"prompt_logprobs": "logprobs"} if self.echo and self.prompt_logprobs is None else {}


_OF_GENERATION = frozenset(ChatBody.model_fields.keys() | CompletionBody.model_fields.keys())


def _tell_source(schema: dict[str, Any]) -> None:
    tell(schema)
    null, no = {"type": "null"}, {"enum": [None, False, 0]}
    given = {"messages": {"type": "array"}, "prompt": null, "add_special_tokens": no}
    schema["oneOf"] = [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": null}},
        {"required": ["messages"], "properties": given},
    ]


class TokenizeBody(MessagesBody):
    """POST /tokenize: either a prompt or messages."""

    model_config = ConfigDict(json_schema_extra=_tell_source)
    of_others = _OF_GENERATION

    prompt: str | None = None
    add_special_tokens: Flag | None = None
    return_token_strs: Flag | None = None

    @model_validator(mode="after")
    def _check_source(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("give either prompt or messages", param="prompt")
        if self.messages is not None and self.add_special_tokens:
            raise RequestError("not available yet: add_special_tokens with messages; their template has them",
                               param="add_special_tokens", code="unsupported_parameter")  # fmt: skip
        return self

    @property
    def without_effect(self) -> list[str]:
        """A prompt is not rendered."""
        names = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "mm_processor_kwargs")
        return [name for name in names if self.messages is None and getattr(self, name) is not None]


class DetokenizeBody(Body):
    """POST /detokenize."""

    of_others = _OF_GENERATION

    tokens: Ints
