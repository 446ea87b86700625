"""`LLM`: offline inference with vLLM's interface; the engine runs in the caller's process."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Any

from tqdm import tqdm

from trifocal.config import EngineArgs, resolve
from trifocal.engine.engine import Engine
from trifocal.engine.output import Choice, expand
from trifocal.errors import RequestError
from trifocal.multimodal.chat import PromptBuilder
from trifocal.multimodal.fetch_policy import FetchPolicy
from trifocal.multimodal.given import images_of, videos_of
from trifocal.sampling_params import SamplingParams
from trifocal.tokenizer import Tokenizer
from trifocal.types import CompletionOutput, EngineStats, Prompt, RequestOutput

PromptInput = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]
_READY_AHEAD = 2  # requests in the engine, in multiples of what one step can take


class LLM:
    """A model ready to generate. Keywords are the fields of `EngineArgs`, names and meaning as in vLLM.

    Raises `ConfigError` for arguments or a checkpoint that cannot be used. `shutdown` (or leaving a `with` block)
    gives the memory back.
    """

    def __init__(self, model: str, **engine_args: Any) -> None:
        self.config = resolve(EngineArgs.from_kwargs(model=model, **engine_args))
        # It is the caller's own machine.
        self._builder = PromptBuilder(self.config, fetch_policy=FetchPolicy.unrestricted())
        self._engine = Engine(replace(self.config, num_vocab=self._builder.tokenizer.vocab_size))
        self._rng = random.Random(self.config.seed)
        self._ids = count()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete raw prompts; results come in the order of the prompts.

        A prompt is a string, token ids, or a dict with `prompt` or `prompt_token_ids` and optionally
        `multi_modal_data` ({"image": …, "video": …}, see docs/media.md: PIL images, arrays, tensors, paths, URLs, lists
        of these, and for a clip a list of frames) and `mm_processor_kwargs`. The text holds one placeholder for each
        item, e.g. `<|vision_start|><|image_pad|><|vision_end|>`. Raises `RequestError` for a prompt that cannot run.
        """
        builds = [_build_call(self._builder, prompt) for prompt in _as_list(prompts)]
        return self._run(builds, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, in OpenAI's message format with the model's chat template."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages

        def build(conversation: Any) -> Callable[[], Prompt]:
            return lambda: self._builder.chat_sync(
                [dict(message) for message in conversation],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template_kwargs=chat_template_kwargs,
                mm_processor_kwargs=mm_processor_kwargs,
            )

        return self._run([build(conversation) for conversation in conversations], sampling_params, use_tqdm)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._builder.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `sampling_params=None` means: the model's generation_config.json, else the class's defaults."""
        return SamplingParams(**self.config.default_sampling)

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return self._engine.stats()

    def shutdown(self) -> None:
        """Stop the engine and give its memory back. Safe to call twice."""
        self._engine.shutdown()
        self._builder.close()

    # ------------------------------------------------------------------------------------------ running

    def _run(
        self,
        builds: Sequence[Callable[[], Prompt]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        params = self._params_for(sampling_params, len(builds))
        progress = tqdm(total=len(builds), desc="Processed prompts", unit="prompt", disable=not use_tqdm)
        outputs: list[RequestOutput] = []
        choices: dict[str, tuple[Choice, RequestOutput]] = {}
        waiting = iter(zip(builds, params, strict=True))
        try:
            while len(outputs) < len(builds) or choices:
                # Pixels take memory: prompts are built as they are needed, while the engine works on others.
                while len(outputs) < len(builds) and len(choices) < _READY_AHEAD * self.config.max_num_seqs:
                    build, param = next(waiting)
                    outputs.append(self._add(build(), param, choices))
                self._step(choices, progress)
        finally:
            for request_id in choices:
                self._engine.abort(request_id)
            while self._engine.has_work:  # a step that is still running belongs to nobody; let it end
                self._engine.step()
            progress.close()
        return outputs

    def _params_for(self, given: SamplingParams | Sequence[SamplingParams] | None, num: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        params = [given] * num if isinstance(given, SamplingParams) else list(given)
        if len(params) != num:
            raise RequestError(f"{len(params)} sampling_params for {num} prompts", param="sampling_params")
        return params

    def _add(
        self, prompt: Prompt, params: SamplingParams, choices: dict[str, tuple[Choice, RequestOutput]]
    ) -> RequestOutput:
        request_id = str(next(self._ids))
        requests = expand(
            request_id,
            prompt,
            params,
            eos_ids=self.config.spec.eos_token_ids,
            max_model_len=self._engine.limits.max_model_len,
            rng=self._rng,
        )
        result = RequestOutput(
            request_id,
            prompt.text,
            prompt.token_ids,
            [CompletionOutput(index, "", []) for index in range(params.n)],
            finished=False,
        )
        for index, request in enumerate(requests):
            self._engine.add(request)
            choices[request.request_id] = (Choice(index, request, self._builder.tokenizer), result)
        return result

    def _step(self, choices: dict[str, tuple[Choice, RequestOutput]], progress: tqdm[Any]) -> None:
        for output in self._engine.step():
            entry = choices.get(output.request_id)
            if entry is None:
                continue
            choice, result = entry
            if output.finish_reason == "error":
                raise RequestError(f"prompt {result.request_id}: {output.stop_reason}", status=500)
            delta = choice.feed(output)
            if delta is None:
                continue
            _extend(result.outputs[delta.index], delta.text, delta.token_ids, delta.logprobs)
            result.num_cached_tokens = delta.num_cached_tokens
            if delta.finish_reason is not None:
                completion = result.outputs[delta.index]
                completion.finish_reason, completion.stop_reason = delta.finish_reason, delta.stop_reason
                del choices[output.request_id]
                self._engine.abort(output.request_id)  # ended by a stop string; otherwise it is gone already
                result.finished = all(completion.finish_reason for completion in result.outputs)
                progress.update(result.finished)


def _extend(completion: CompletionOutput, text: str, token_ids: list[int], logprobs: list[Any] | None) -> None:
    completion.text += text
    completion.token_ids += token_ids
    if logprobs is not None:
        completion.logprobs = (completion.logprobs or []) + logprobs
        completion.cumulative_logprob = sum(each.logprobs[0] for each in completion.logprobs)


def _as_list(prompts: Any) -> list[PromptInput]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts and all(isinstance(token_id, int) for token_id in prompts):
        return [prompts]
    return list(prompts)


def _build_call(builder: PromptBuilder, prompt: PromptInput) -> Callable[[], Prompt]:
    given: Mapping[str, Any] = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
    text = given.get("prompt", given.get("prompt_token_ids"))
    if text is None:
        raise RequestError("a prompt dict needs 'prompt' or 'prompt_token_ids'", param="prompt")
    media = given.get("multi_modal_data") or {}
    unknown = set(media) - {"image", "video"}
    if unknown:
        raise RequestError(f"multi_modal_data has unknown modality {sorted(unknown)[0]!r}; known: image, video")
    return lambda: builder.build(
        text if isinstance(text, str) else list(text),
        images_of(media.get("image")),
        videos_of(media.get("video")),
        mm_processor_kwargs=given.get("mm_processor_kwargs"),
    )
