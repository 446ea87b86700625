"""The output processor of `LLM` and of the server: `Choice` makes `Delta`s of one sequence's tokens, `Answer` keeps and
counts those of a request."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from trifocal.engine.bad_words import bad_word_ids
from trifocal.engine.detokenizer import Detokenizer
from trifocal.engine.limits import clip_max_tokens
from trifocal.engine.stop import StopStrings
from trifocal.errors import RequestError
from trifocal.log import get_logger
from trifocal.sampling_params import SamplingParams
from trifocal.tokenizer import Tokenizer
from trifocal.types import (
    CompletionOutput,
    Delta,
    Prompt,
    Request,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
    TokenOutput,
)

_log = get_logger(__name__)
_MAX_TOLD = 8  # stop ids in one line of the log


def expand(
    request_id: str,
    prompt: Prompt,
    params: SamplingParams,
    *,
    eos_ids: Iterable[int],
    max_model_len: int,
    rng: random.Random,
    tokenizer: Tokenizer,
) -> list[Request]:
    """One engine request for each of the `n` choices, with everything decided: length, stop ids, bad words, seed.

    Raises `RequestError` where the prompt leaves no room for an answer (see `clip_max_tokens`), for bad words that
    have no tokens, and where no token is left to choose from.
    """
    params = clip_max_tokens(params, len(prompt.token_ids), max_model_len)
    stop_ids = frozenset(params.stop_token_ids or [])
    if not params.ignore_eos:
        stop_ids |= {*eos_ids, *prompt.stop_token_ids}
    bad_words = bad_word_ids(tuple(params.bad_words or ()), tokenizer)
    _check_allowed(params, stop_ids, bad_words, tokenizer)
    seed = rng.getrandbits(63) if params.seed is None else params.seed
    single = params.replace(n=1)
    return [
        Request(
            request_id=request_id if params.n == 1 else f"{request_id}/{index}",
            prompt=prompt,
            params=single,
            stop_token_ids=stop_ids,
            seed=seed + index,
            prompt_logprobs=params.prompt_logprobs if index == 0 else None,  # all choices have the same prompt
            bad_word_ids=bad_words,
        )
        for index in range(params.n)
    ]


def _check_allowed(
    params: SamplingParams, stop_ids: frozenset[int], bad_words: Iterable[Sequence[int]], tokenizer: Tokenizer
) -> None:
    """Raise `RequestError` if other fields exclude all of `allowed_token_ids` from the first token."""
    if params.allowed_token_ids is None:
        return
    excluded = {word[0] for word in bad_words if len(word) == 1} | (stop_ids if params.min_tokens else set())
    if all(token_id in excluded or token_id >= tokenizer.vocab_size for token_id in params.allowed_token_ids):
        raise RequestError(
            "allowed_token_ids: none of these tokens can be chosen: bad_words, or min_tokens with the tokens that end "
            "an answer, exclude them, or the tokenizer does not have them; allow others",
            param="allowed_token_ids",
        )


@lru_cache(maxsize=64)
def _warn_of_words(tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
    """Say once that stop ids look meant for another vocabulary: clients of vLLM send InternLM2's to any InternVL."""
    words = [token_id for token_id in sorted(stop_ids - tokenizer.special_ids) if tokenizer.id_to_token(token_id)]
    if words:
        shown = ", ".join(f"{token_id} ({tokenizer.decode([token_id])!r})" for token_id in words[:_MAX_TOLD])
        _log.warning("stop_token_ids: these are ordinary tokens of the model, and answers will end at them: %s", shown)


def _told_ids(params: SamplingParams, tokenizer: Tokenizer) -> frozenset[int]:
    """Stop ids that a `stop_reason` tells: those that were asked for. The model's own end of a turn is no news."""
    asked = frozenset(params.stop_token_ids or [])
    return asked if params.ignore_eos else asked - {tokenizer.eos_token_id}


class Choice:
    """One output sequence as its reader sees it; `is_finished` once its last delta is out."""

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer) -> None:
        token_ids, params = request.prompt.token_ids, request.params  # not the request: it holds the pixels
        _warn_of_words(tokenizer, frozenset(params.stop_token_ids or []))
        self.index = index
        self.is_finished = False
        self._params = params
        self._num_prompt_tokens = len(token_ids)
        self._detokenizer = Detokenizer(tokenizer, token_ids, skip_special_tokens=params.skip_special_tokens)
        self._stop = StopStrings(params.stop_strings, include_in_output=params.include_stop_str_in_output)
        self._told_ids = _told_ids(params, tokenizer)
        self._num_tokens = 0
        self._token_ids: list[int] = []  # not shown yet
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None

    def feed(self, output: TokenOutput) -> Delta | None:
        """Take new tokens. Returns what can be shown, None if nothing can.

        If the delta has a finish_reason and `output` has none, a stop string ended the sequence and the engine must
        be told to abort it.
        """
        if self.is_finished:
            return None
        text = "".join(self._text_of(token_id, output) for token_id in output.token_ids)
        self._token_ids += output.token_ids
        self._logprobs += output.logprobs or []
        self._prompt_logprobs = self._prompt_logprobs or output.prompt_logprobs
        reason, stop = output.finish_reason, output.stop_reason
        if reason == "stop" and stop not in self._told_ids:
            stop = None
        if reason is not None:
            text += self._stop.feed(self._detokenizer.flush()) + self._stop.flush()
        if self._stop.matched is not None:
            reason, stop = "stop", self._stop.matched
        if not text and reason is None:
            return None
        self.is_finished = reason is not None
        token_ids, self._token_ids = self._token_ids, []
        logprobs, self._logprobs = self._logprobs, []
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        return Delta(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs if self._params.logprobs is not None else None,
            finish_reason=reason,
            stop_reason=stop,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=output.num_cached_tokens,
            scheduled_at=output.scheduled_at,
            num_preemptions=output.num_preemptions,
            prompt_logprobs=prompt_logprobs,
        )

    def _text_of(self, token_id: int, output: TokenOutput) -> str:
        self._num_tokens += 1
        if output.finish_reason == "stop" and token_id == output.stop_reason:
            # The token that ends the sequence is not part of the text, unless its reader asked for stops in it.
            return self._stop.feed(self._detokenizer.feed(token_id)) if self._shows_stop() else ""
        text = self._detokenizer.feed(token_id)
        if self._num_tokens <= self._params.min_tokens:
            return self._stop.pass_through(text)  # too early to stop
        return self._stop.feed(text)

    def _shows_stop(self) -> bool:
        return self._params.include_stop_str_in_output


@dataclass(slots=True)
class ChoiceCount:
    """Tokens of one choice, shown or not. Times are those of the caller's clock; 0.0 before the first token."""

    num_tokens: int = 0
    first_at: float = 0.0
    last_at: float = 0.0


class AnswerObserver(Protocol):
    """Takes the measures of an answer while it grows. Choices are numbered through, as in `Answer`."""

    def tokens_come(self, count: ChoiceCount, num_tokens: int, now: float) -> None:
        """`num_tokens` more of a choice are about to be counted."""

    def choice_ends(self, index: int, count: ChoiceCount, delta: Delta, now: float) -> None:
        """Choice `index` has its last delta, and all its tokens are counted."""


class Answer:
    """What has come of a request so far: a `RequestOutput` for each of its prompts, with `n` choices each.

    Choices are numbered through: choice `i` belongs to prompt `i // n`, and so does `Delta.index`. Without `keeps_text`
    the outputs stay without text, tokens and log-probabilities, for readers who take them from the deltas.
    """

    def __init__(
        self,
        request_id: str,
        prompts: Sequence[Prompt],
        n: int,
        *,
        metrics: RequestMetrics | None = None,
        observer: AnswerObserver | None = None,
        keeps_text: bool = True,
    ) -> None:
        self.outputs = [
            RequestOutput(
                request_id,
                prompt.text,
                prompt.token_ids,
                [CompletionOutput(index, "", []) for index in range(n)],
                finished=False,
                metrics=metrics or RequestMetrics(),
            )
            for prompt in prompts
        ]
        self.n = n
        self.counts = [ChoiceCount() for _ in range(n * len(prompts))]
        self.num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self.num_generated_tokens = 0
        self.num_cached_tokens = 0  # of the prompts: found in the prefix cache
        self.open = set(range(len(self.counts)))  # choices that have not ended
        self._observer = observer
        self._keeps_text = keeps_text

    def count(self, index: int, num_tokens: int, now: float) -> None:
        """So many tokens more of a choice, shown or not, at `now`; none where a choice ends without one."""
        count, metrics = self.counts[index], self.outputs[index // self.n].metrics
        metrics.last_token_ts = now
        if num_tokens:
            if self._observer is not None:
                self._observer.tokens_come(count, num_tokens, now)
            count.num_tokens += num_tokens
            count.first_at = count.first_at or now
            count.last_at = now
            metrics.num_generation_tokens += num_tokens
            metrics.first_token_ts = metrics.first_token_ts or now
            self.num_generated_tokens += num_tokens

    def extend(self, delta: Delta, now: float) -> None:
        """Take the next piece of a choice, whose tokens were counted."""
        output = self.outputs[delta.index // self.n]
        choice = output.outputs[delta.index % self.n]
        if self._keeps_text:
            choice.text += delta.text
            choice.token_ids += delta.token_ids
            if delta.logprobs is not None:
                choice.logprobs = choice.logprobs or []
                choice.logprobs += delta.logprobs
                gained = sum(each.logprobs[0] for each in delta.logprobs)
                choice.cumulative_logprob = (choice.cumulative_logprob or 0.0) + gained
        if choice.index == 0:  # further choices find the first one's blocks: that is no saving to the client
            self.num_cached_tokens += delta.num_cached_tokens - output.num_cached_tokens
            output.num_cached_tokens = delta.num_cached_tokens
        if delta.prompt_logprobs is not None:
            output.prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
            output.finished = all(each.finish_reason for each in output.outputs)
            self.open.discard(delta.index)
            if self._observer is not None:
                self._observer.choice_ends(delta.index, self.counts[delta.index], delta, now)

    def choice(self, index: int) -> CompletionOutput:
        """Choice `index` as far as it has come."""
        return self.outputs[index // self.n].outputs[index % self.n]
