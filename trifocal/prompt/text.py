"""`TextEncoder`: texts as token ids, within the model's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from trifocal.config.engine import EngineConfig
from trifocal.errors import RequestError
from trifocal.prompt.processor import Processor
from trifocal.tokenizer import Guard, Tokenizer

_CHARS_PER_TOKEN = 8  # more than any language has on average
_SEAM = 256  # tokens that a cut through a word or a sentinel may add


class TextEncoder:
    """Tokenises for one model. A text far too long is refused by its beginning: all of it might take seconds."""

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer, processor: Processor) -> None:
        self._tokenizer = tokenizer
        self._processor = processor
        self._max_model_len = config.scheduling.max_model_len
        self._vocab_size = config.model.spec.text.vocab_size

    @property
    def max_chars(self) -> int:
        """Characters that no text within the context can have more of."""
        return self._max_model_len * self._tokenizer.longest_token

    def prompt(self, prompt: str | list[int], *, add_special_tokens: bool) -> list[int]:
        """Ids of a raw prompt, in which control tokens count as such. Raises `RequestError`."""
        if isinstance(prompt, str):
            encode = partial(self._tokenizer.encode, add_special_tokens=add_special_tokens)
            prompt = self._tokenize(self._processor.normalize_prompt(prompt), encode, "prompt")
        for token_id in prompt:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < self._vocab_size:
                message = f"token id {token_id!r} is not in the vocabulary (0 .. {self._vocab_size - 1})"
                raise RequestError(message, param="prompt")
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        return prompt

    def chat(self, text: str, guard: Guard) -> list[int]:
        """Ids of a rendered chat, in which what the guard protects is words. Raises `RequestError`."""
        return self._tokenize(text, partial(self._tokenizer.encode_chat, protected=guard.protected), "messages")

    def check_length(self, token_ids: Sequence[int]) -> None:
        """Raise `RequestError` if there are more ids than the context has room for."""
        if len(token_ids) > self._max_model_len:
            raise self.too_long(len(token_ids))

    def too_long(self, num_tokens: int | None = None, param: str = "messages") -> RequestError:
        """The error about a prompt of so many tokens; None: too many to count."""
        shown = f"at least {self._max_model_len + 1}" if num_tokens is None else num_tokens
        return RequestError(
            f"This model's maximum context length is {self._max_model_len} tokens. However, you requested "
            f"{shown} tokens in the {param}. Please reduce the length of the {param}.",
            param=param,
            code="context_length_exceeded",
        )

    def _tokenize(self, text: str, encode: Callable[[str], list[int]], param: str) -> list[int]:
        beginning = text[: self._max_model_len * _CHARS_PER_TOKEN]
        is_cut = len(beginning) < len(text)
        if len(text) > self.max_chars or (is_cut and len(encode(beginning)) > self._max_model_len + _SEAM):
            raise self.too_long(param=param)
        return encode(text)
