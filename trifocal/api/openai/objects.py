"""What routes answer, as types: mypy holds the code to them, and the OpenAPI document is made of them.

Fields of type None are OpenAI's and vLLM's for what is not available here: clients read them without asking.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from trifocal.types import FinishReason


class PromptDetails(TypedDict):
    """`cached_tokens` of the prompt were found in the prefix cache."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens of a request, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Token(TypedDict):
    """A token, its log-probability, and its bytes, which need not be whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(Token):
    """A token of the answer and what else was likely in its place."""

    top_logprobs: list[Token]


class ChatLogprobs(TypedDict):
    """`logprobs` of a chat choice."""

    content: list[ChosenToken]
    refusal: None


class PromptToken(TypedDict):
    """A token that stands in the prompt, or could have; `rank` 1 is the most likely one."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]


class Function(TypedDict):
    """The name of a function and its arguments, which are JSON."""

    name: str
    arguments: str


class FunctionCall(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: Function


class ChatMessage(TypedDict):
    """The answer. `role` is assistant unless the server was started with another."""

    role: str
    content: str | None
    refusal: None
    annotations: None
    audio: None
    function_call: None
    tool_calls: list[FunctionCall] | None
    reasoning: str | None


class ChatChoice(TypedDict):
    """One of `n` answers. `stop_reason`: the stop string or token id of the request that ended it."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | Literal["tool_calls"] | None
    stop_reason: int | str | None
    token_ids: None


class ChatCompletion(TypedDict):
    """A whole answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None
    system_fingerprint: None
    prompt_logprobs: PromptLogprobs | None


class CompletionLogprobs(TypedDict):
    """`logprobs` of a completion choice: lists with an entry for each token, null for the first one of an echo."""

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    """One of `n` continuations of a prompt; choice `i` belongs to prompt `i // n`."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: None
    prompt_logprobs: PromptLogprobs | None


class TextCompletion(TypedDict):
    """A whole answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    service_tier: None
    system_fingerprint: None


class Tokenized(TypedDict):
    """Token ids of a prompt, and their spelling if that was asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """Text of token ids."""

    prompt: str


class ModelPermission(TypedDict):
    """What may be done with a model; vLLM's record, which some clients of old look for."""

    id: str
    object: Literal["model_permission"]
    created: int
    allow_create_engine: bool
    allow_sampling: bool
    allow_logprobs: bool
    allow_search_indices: bool
    allow_view: bool
    allow_fine_tuning: bool
    organization: str
    group: None
    is_blocking: bool


class ModelCard(TypedDict):
    """A name that requests may give as `model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    permission: list[ModelPermission]


class ModelList(TypedDict):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(TypedDict):
    """What was wrong, with which field; `code` is for programs."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """The body of every refusal, and the data of an error event in a stream."""

    error: ErrorDetail
