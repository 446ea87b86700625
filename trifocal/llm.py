"""`LLM`: offline inference with vLLM's interface; the engine runs in the caller's process."""

from __future__ import annotations

import os
import weakref
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from numbers import Integral
from types import TracebackType
from typing import Any

from tqdm import tqdm

from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine.shared_engine import Call, SharedEngine
from trifocal.errors import RequestError, errors_in_keywords
from trifocal.media.fetch.policy import FetchPolicy
from trifocal.media.multi_modal_data import check_names
from trifocal.prompt.builder import PromptBuilder
from trifocal.prompt.ignored_fields import IgnoredFields, judge_messages
from trifocal.sampling_params import Flag, SamplingParams, refuse_unavailable, wrong
from trifocal.tokenizer import Tokenizer
from trifocal.types import EngineStats, Prompt, RequestMetrics, RequestOutput

PromptInput = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]
ProgressBar = bool | Callable[..., Any]
Build = Callable[[], Prompt]
_READY_AHEAD = 2  # sequences of a call in the engine, in multiples of what one step can take
_PROMPT_KEYS = ("prompt", "prompt_token_ids", "multi_modal_data", "mm_processor_kwargs", "cache_salt")
_UNAVAILABLE_KEYS: Mapping[str, tuple[Any, ...]] = {"multi_modal_uuids": ({},), "prompt_embeds": ()}


class LLM:
    """A model ready to generate. Keywords are the fields of `EngineArgs`, names and meaning as in vLLM.

    Any number of threads may call its methods at once, also inside a running event loop: their requests share one
    batch. A call that fails or is interrupted (KeyboardInterrupt) ends alone. Not for a process that was forked after
    the object was made: there the methods raise `EngineDeadError`, and `shutdown` does nothing.

    `chat_template` is a Jinja template, or a file with one, that `chat` uses in place of the checkpoint's.

    Raises `ConfigError` for arguments or a checkpoint that cannot be used. `shutdown` (or leaving a `with` block)
    gives the memory back.
    """

    def __init__(self, model: str, *, chat_template: str | os.PathLike[str] | None = None, **engine_args: Any) -> None:
        with errors_in_keywords():
            self.config = resolve(EngineArgs.from_kwargs(model=model, **engine_args))
            # It is the caller's own machine.
            policy = FetchPolicy.unrestricted()
            self._builder = PromptBuilder(self.config, fetch_policy=policy, chat_template=chat_template)
            self._builder.open_loop()
            tokenizer = self._builder.tokenizer
            model_config = replace(self.config.model, num_vocab=tokenizer.vocab_size)
            self._shared = SharedEngine(replace(self.config, model=model_config), tokenizer)
        self._engine = self._shared.engine
        weakref.finalize(self, self._shared.stop).atexit = False

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
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete raw prompts; results come in the order of the prompts.

        A prompt is a string, token ids, or a dict with `prompt` or `prompt_token_ids` and optionally
        `multi_modal_data` ({"image": …, "video": …}, see docs/media.md: PIL images, arrays, tensors, paths, URLs, lists
        of these, and for a clip a list of frames), `mm_processor_kwargs` and `cache_salt`. The text holds one
        placeholder for each item, e.g. `<|vision_start|><|image_pad|><|vision_end|>`.

        `use_tqdm` may be a function that makes a progress bar as `tqdm` does. `lora_request`, `priority` and
        `tokenization_kwargs` are vLLM's, for values that ask for what happens anyway.

        Raises `RequestError` for a prompt that cannot run; then no other prompt of this call is answered. Raises
        `EngineDeadError` if the model is shut down.
        """
        self._shared.check_alive()
        _refuse_options(lora_request, priority, tokenization_kwargs)
        builds = [_build_call(self._builder, prompt) for prompt in _as_list(prompts)]
        return self._run(builds, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: ProgressBar = True,
        lora_request: Any = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        *,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, in OpenAI's message format with the model's chat template.

        `chat_template` is a Jinja template, or a file with one, for this call. Its `chat_template_content_format` is
        "string" (the content of a message is a text), "openai" (a list of parts) or "auto" (whatever it can render).
        For the other keywords and for what is raised see `generate`; `tools` are not available yet. Unknown fields of
        messages are named in a warning.
        """
        self._shared.check_alive()
        _refuse_options(lora_request, priority, tokenization_kwargs)
        refuse_unavailable("tools", tools, ([],))
        Flag().check("add_generation_prompt", add_generation_prompt)
        Flag().check("continue_final_message", continue_final_message)
        conversations = _as_conversations(messages)

        ignored = IgnoredFields()
        for conversation in conversations:
            judge_messages(conversation, ignored)
        ignored.warn()

        def build(conversation: Any) -> Build:
            return lambda: self._builder.chat_sync(
                [dict(message) for message in conversation],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                chat_template_content_format=chat_template_content_format,
                chat_template_kwargs=chat_template_kwargs,
                mm_processor_kwargs=mm_processor_kwargs,
            )

        return self._run([build(conversation) for conversation in conversations], sampling_params, use_tqdm)

    def get_tokenizer(self) -> Tokenizer:
        return self._builder.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `sampling_params=None` means: the model's generation_config.json, else the class's defaults."""
        return SamplingParams(**self.config.model.default_sampling)

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine. Counters begin anew after a step that failed (`num_restarts`)."""
        return self._shared.stats()

    def shutdown(self) -> None:
        """Stop the engine and give its memory back; calls that run end with `EngineDeadError`. Safe to call twice."""
        self._shared.end()
        if not self._shared.is_inherited:
            self._builder.close()

    # ------------------------------------------------------------------------------------------ running

    def _run(
        self,
        builds: Sequence[Build],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: ProgressBar,
    ) -> list[RequestOutput]:
        params = self._params_for(sampling_params, len(builds))
        window = _READY_AHEAD * self.config.scheduling.max_num_seqs
        outputs: list[RequestOutput] = []
        with self._shared.open_call() as call, _progress_bar(use_tqdm, len(builds)) as progress:
            while len(outputs) < len(builds) or call.num_open:
                # Pixels take memory: prompts are built as they are needed, while the engine works on others.
                while len(outputs) < len(builds) and call.num_open < window:
                    index = len(outputs)
                    outputs.append(self._prepare(call, builds[index], params[index]))
                call.submit()
                progress.update(call.wait())
        return outputs

    def _params_for(self, given: SamplingParams | Sequence[SamplingParams] | None, num: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        params = _items(given) or [given]
        for each in params:
            if not isinstance(each, SamplingParams):
                raise wrong("sampling_params", "SamplingParams, or a list of them", each)
        if isinstance(given, SamplingParams):
            return [given] * num
        if len(params) != num:
            raise RequestError(f"{len(params)} sampling_params for {num} prompts", param="sampling_params")
        return params

    def _prepare(self, call: Call, build: Build, params: SamplingParams) -> RequestOutput:
        metrics = RequestMetrics()
        try:
            prompt = build()
        except (Exception, CancelledError):
            self._shared.check_alive()  # a shutdown meanwhile takes its threads from the builder
            raise
        return call.prepare(prompt, params, metrics)


def _progress_bar(use_tqdm: ProgressBar, total: int) -> Any:
    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=total, desc="Processed prompts", unit="prompt", disable=not use_tqdm)


def _refuse_options(lora_request: Any, priority: Any, tokenization_kwargs: Any) -> None:
    """Raise `RequestError` for what generate and chat of vLLM know and these do not."""
    for name, value, neutral in (("lora_request", lora_request, None), ("priority", priority, 0)):
        for each in value if isinstance(value, list | tuple) else [value]:  # one for each prompt
            refuse_unavailable(name, each, () if neutral is None else (neutral,))
    refuse_unavailable("tokenization_kwargs", tokenization_kwargs, ({},))


def _as_list(prompts: Any) -> list[PromptInput]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    found = _items(prompts)
    if found and _are_token_ids(found):
        return [found]
    if found is None:
        raise wrong("prompts", "a string, a list of token ids, a dict, or a list of these", prompts)
    return found


def _items(value: Any) -> list[Any] | None:
    """What a list, or whatever else is not one thing, consists of; None if it is one thing."""
    is_one = isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    return None if is_one else list(value)


def _are_token_ids(items: list[Any]) -> bool:
    return all(isinstance(item, Integral) and not isinstance(item, bool) for item in items)


def _text_of(value: Any, name: str) -> str | list[int]:
    if isinstance(value, str):
        return value
    items = _items(value)
    if items is None or not _are_token_ids(items):
        raise wrong(name, "a string" if name == "prompt" else "a list of token ids", value)
    return [int(item) for item in items]


def _as_conversations(messages: Any) -> list[list[Mapping[str, Any]]]:
    found = _items(messages)
    if found is not None:
        conversations = [found] if found and isinstance(found[0], Mapping) else [_items(each) for each in found]
        if all(each is not None and all(isinstance(message, Mapping) for message in each) for each in conversations):
            return conversations  # type: ignore[return-value]  # looked into just now
    raise wrong("messages", "a list of dicts with role and content, or a list of such lists", messages)


def _build_call(builder: PromptBuilder, prompt: PromptInput) -> Build:
    bare = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
    given: Mapping[str, Any] = prompt if isinstance(prompt, Mapping) else {bare: prompt}
    for key in given:
        if key in _UNAVAILABLE_KEYS:
            refuse_unavailable(key, given[key], _UNAVAILABLE_KEYS[key])
        elif key not in _PROMPT_KEYS:
            near = get_close_matches(str(key), _PROMPT_KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_PROMPT_KEYS)}"
            raise RequestError(f"a prompt has no key {key!r}; {hint}", param="prompt")
    name = next((key for key in ("prompt", "prompt_token_ids") if given.get(key) is not None), None)
    if name is None:
        raise RequestError("a prompt dict needs 'prompt' or 'prompt_token_ids'", param="prompt")
    text = _text_of(given[name], name)
    media = given.get("multi_modal_data")
    media = {} if media is None else media
    check_names(media)
    salt = given.get("cache_salt")
    if salt is not None and not isinstance(salt, str):
        raise wrong("cache_salt", "a string", salt)
    return lambda: builder.build(text, media, mm_processor_kwargs=given.get("mm_processor_kwargs"), cache_salt=salt)
