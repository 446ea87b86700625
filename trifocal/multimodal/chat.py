"""`PromptBuilder`: from what a client sends, or a script passes, to the `Prompt` that the engine takes.

Order of work: check the messages, render and tokenise them, refuse what cannot fit; fetch all media at once; read their
headers and refuse again what cannot fit, before any pixel is touched; decode; let the family's processor build. All but
the fetching runs in threads, never on the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from trifocal import envs
from trifocal.config import EngineConfig
from trifocal.errors import ConfigError, RequestError
from trifocal.models.registry import PROCESSORS
from trifocal.multimodal.fetch import Fetcher, fetch_all, run_all
from trifocal.multimodal.fetch_policy import FetchPolicy
from trifocal.multimodal.hashing import salted
from trifocal.multimodal.image import OpenedImage
from trifocal.multimodal.limits import MediaLimits
from trifocal.multimodal.media import Media
from trifocal.multimodal.media_cache import MediaCache
from trifocal.multimodal.messages import MediaRef, MessageParser
from trifocal.multimodal.processor import FrameSample, Processor
from trifocal.multimodal.reader import MediaReader
from trifocal.multimodal.sandbox import QUICK_SECONDS, RenderTimeoutError
from trifocal.multimodal.template import ChatTemplate, RenderedTooLongError, read_chat_template
from trifocal.multimodal.video import OpenedVideo
from trifocal.multimodal.watch import timed
from trifocal.threads import LoopThread, Threads
from trifocal.tokenizer import Tokenizer, valid_text
from trifocal.types import Modality, Prompt

_MAX_THREADS = 8
_TEXT_THREADS = 2
_MAX_GIVEN_TEMPLATES = 16
_CHARS_PER_TOKEN = 8  # more than any language has on average
_SEAM = 256  # tokens that a cut through a word or a sentinel may add
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as the template renders it: `token_ids` with one placeholder for each of `media`, not expanded."""

    text: str
    token_ids: list[int]
    media: list[MediaRef]


class PromptBuilder:
    """Turns messages, prompts and media into `Prompt`s for one model. Safe to use from several threads.

    `chat_template` is a file or a template that replaces the checkpoint's; without a `fetch_policy` only the public
    internet is fetched from. What a request gets wrong raises `RequestError`, naming the place in the messages.
    """

    def __init__(
        self, config: EngineConfig, *, fetch_policy: FetchPolicy | None = None, chat_template: str | None = None
    ) -> None:
        self.config = config
        self.tokenizer = Tokenizer.from_folder(config.tokenizer, trust_remote_code=config.trust_remote_code)
        self.processor: Processor = PROCESSORS.get(config.spec.architecture)(config.spec, self.tokenizer)
        try:
            self.processor.check_options(config.mm_processor_kwargs)
        except RequestError as error:
            raise ConfigError(f"--mm-processor-kwargs: {error.message}") from None
        source = read_chat_template(chat_template) if chat_template else self.tokenizer.chat_template
        source = source or self.processor.chat_template
        self._template = ChatTemplate(source, self.tokenizer.special_tokens) if source else None
        self._given_templates: dict[str, ChatTemplate] = {}
        threads = max(envs.MEDIA_THREADS.get() or min(_MAX_THREADS, os.cpu_count() or 1), 1)
        self._executor = Threads(threads, "media")
        # Text has threads of its own: it must not wait until a hundred pictures of somebody else are decoded.
        self._text_executor = Threads(_TEXT_THREADS, "text")
        self._slow_executor = Threads(1, "slow")
        self._media_at_once = max(threads - 1, 1)  # of one request: another's single picture gets its turn
        cache = MediaCache(config.mm_processor_cache_bytes)
        self._reader = MediaReader(MediaLimits.of(config), num_decoders=threads, cache=cache)
        self._loop: LoopThread | None = None
        self._loop_lock = Lock()
        self._fetch_policy = fetch_policy or FetchPolicy()
        self._fetcher = Fetcher(self._executor, self._fetch_policy)

    # ------------------------------------------------------------------------------------------ entry points

    async def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str | None = None,
    ) -> Prompt:
        """The prompt of a chat request. Cancelling it drops its downloads."""
        render = partial(
            self.render,
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )
        return await self._chat(render, self._fetcher, mm_processor_kwargs, cache_salt)

    def chat_sync(self, messages: list[dict[str, Any]], **options: Any) -> Prompt:
        """`chat` for a caller without an event loop, with the same keywords and those of `render`."""

        async def run() -> Prompt:
            fetcher = Fetcher(self._executor, self._fetch_policy)  # HTTP clients belong to one loop
            mm_processor_kwargs = options.pop("mm_processor_kwargs", None)
            cache_salt = options.pop("cache_salt", None)
            try:
                return await self._chat(
                    partial(self.render, messages, **options), fetcher, mm_processor_kwargs, cache_salt
                )
            finally:
                await fetcher.aclose()

        return self.open_loop().run(run())  # the caller's own thread may be running a loop (notebooks do)

    def open_loop(self) -> LoopThread:
        """The loop that `chat_sync` uses, which is started by the first call."""
        with self._loop_lock:
            self._loop = self._loop or LoopThread()
            return self._loop

    async def completion(
        self, prompt: str | list[int], *, add_special_tokens: bool = True, cache_salt: str | None = None
    ) -> Prompt:
        """The prompt of a raw completion: control tokens in it count as such."""
        encode = partial(self._encode, prompt, add_special_tokens=add_special_tokens)
        token_ids = await self._off_loop(encode)
        return await self._off_loop(partial(self._finish, token_ids, [], {}, _text(prompt), cache_salt))

    def build(
        self,
        prompt: str | list[int],
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str | None = None,
    ) -> Prompt:
        """The prompt of `LLM.generate`: a text with placeholders, PIL images or arrays, clips (see `open_frames`)."""
        options = self._options(mm_processor_kwargs)
        refs = [MediaRef("image", image, f"multi_modal_data['image'][{k}]") for k, image in enumerate(images)]
        refs += [MediaRef("video", video, f"multi_modal_data['video'][{k}]") for k, video in enumerate(videos)]
        self._check_limits(refs)
        token_ids = self._encode(prompt, add_special_tokens=True)
        opened = [self._open(ref, ref.source, options, cache_salt) for ref in refs]
        self._check_media(token_ids, opened, options)
        media = [self._load(item, options) for item in opened]
        return self._finish(token_ids, media, options, _text(prompt), cache_salt)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_seconds: float | None = None,
    ) -> Rendered:
        """Text and token ids of a chat, without any media work. For `max_seconds` see `ChatTemplate.render`.

        `chat_template` replaces the model's; `chat_template_content_format` is "auto", "string" or "openai", see
        `ChatTemplate.formatted`.
        """
        template = self._template if chat_template is None else self._given_template(chat_template)
        if template is None:
            raise RequestError("the checkpoint has no chat template; start with --chat-template", param="messages")
        template = template.formatted(chat_template_content_format)
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        guard = self.tokenizer.guard()
        keeps_order = self.processor.keeps_part_order
        parser = MessageParser(template, self.processor.placeholder, keeps_order=keeps_order)
        try:
            conversation = parser.parse(messages, guard)
            extra = guard.hide_all(_object(chat_template_kwargs, "chat_template_kwargs"))
        except RecursionError:
            raise RequestError("the messages or their arguments are nested too deeply", param="messages") from None
        self._check_limits(conversation.media)
        try:
            text = template.render(
                conversation.messages,
                add_generation_prompt=add_generation_prompt,
                max_chars=self._max_chars,
                extra=extra,
                max_seconds=max_seconds,
            )
        except RenderedTooLongError:
            raise self._too_long(self.config.max_model_len + 1, "at least ") from None
        if continue_final_message:
            text = conversation.cut_after_last_words(text)
        token_ids = self._tokenize(text, partial(self.tokenizer.encode_chat, protected=guard.protected), "messages")
        self._check_media(token_ids, [], {})
        return Rendered(guard.reveal(text), token_ids, conversation.media)

    def _given_template(self, text_or_path: str) -> ChatTemplate:
        """The template of one call; making it takes two renderings, so some are kept."""
        try:
            source = read_chat_template(text_or_path)
            template = self._given_templates.get(source) or ChatTemplate(source, self.tokenizer.special_tokens)
        except ConfigError as error:
            raise RequestError(str(error).replace("--chat-template", "chat_template"), param="chat_template") from None
        if len(self._given_templates) >= _MAX_GIVEN_TEMPLATES:
            self._given_templates.clear()
        self._given_templates[source] = template
        return template

    async def aclose(self) -> None:
        """Close connections, decoders and threads."""
        await self._fetcher.aclose()
        self.close()

    def close(self) -> None:
        """As `aclose`, for users of the synchronous methods only."""
        if self._loop is not None:
            self._loop.end()
        for executor in (self._executor, self._text_executor, self._slow_executor):
            executor.shutdown(wait=False, cancel_futures=True)
        self._reader.close()

    # ------------------------------------------------------------------------------------------ the steps

    async def _chat(
        self,
        render: Callable[..., Rendered],
        fetcher: Fetcher,
        mm_processor_kwargs: Mapping[str, Any] | None,
        cache_salt: str | None,
    ) -> Prompt:
        options = self._options(mm_processor_kwargs)
        rendered = await self._rendered(render)
        refs = rendered.media
        if not refs:
            finish = partial(self._finish, rendered.token_ids, [], options, rendered.text, cache_salt)
            return await self._off_loop(finish)
        with timed("fetch"):
            sources = await fetch_all(refs, fetcher)
        with timed("decode"):
            opens = [
                partial(self._open, ref, source, options, cache_salt) for ref, source in zip(refs, sources, strict=True)
            ]
            opened = await self._run_media(opens)
            self._check_media(rendered.token_ids, opened, options)
            media = await self._run_media([partial(self._load, item, options) for item in opened])
        with timed("process"):
            finish = partial(self._finish, rendered.token_ids, media, options, rendered.text, cache_salt)
            [prompt] = await self._run_media([finish])
        return prompt

    async def _rendered(self, render: Callable[..., Rendered]) -> Rendered:
        """What `render` makes. If it takes long, once more: in a lane of its own, where only its like wait for it."""
        try:
            return await self._off_loop(partial(render, max_seconds=QUICK_SECONDS))
        except RenderTimeoutError:
            return await asyncio.get_running_loop().run_in_executor(self._slow_executor, render)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        """Text work."""
        return await asyncio.get_running_loop().run_in_executor(self._text_executor, work)

    async def _run_media(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Media work of one request, a few at once."""
        loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(self._media_at_once)

        async def run(work: Callable[[], T]) -> T:
            async with gate:
                return await loop.run_in_executor(self._executor, work)

        return await run_all([run(work) for work in works])

    def _encode(self, prompt: str | list[int], *, add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, str):
            encode = partial(self.tokenizer.encode, add_special_tokens=add_special_tokens)
            prompt = self._tokenize(self.processor.normalize_prompt(prompt), encode, "prompt")
        vocab_size = self.config.spec.text.vocab_size
        for token_id in prompt:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                message = f"token id {token_id!r} is not in the vocabulary (0 .. {vocab_size - 1})"
                raise RequestError(message, param="prompt")
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        return prompt

    def _tokenize(self, text: str, encode: Callable[[str], list[int]], param: str) -> list[int]:
        """Ids of `text`; one that is far too long is refused by its beginning: all of it might take seconds."""
        limit = self.config.max_model_len
        beginning = text[: limit * _CHARS_PER_TOKEN]
        is_cut = len(beginning) < len(text)
        if len(text) > self._max_chars or (is_cut and len(encode(beginning)) > limit + _SEAM):
            raise self._too_long(limit + 1, "at least ", param)
        return encode(text)

    def _open(
        self, ref: MediaRef, source: Any, options: Mapping[str, Any], salt: str | None
    ) -> OpenedImage | OpenedVideo:
        if ref.modality == "image":
            return self._reader.open_image(source, ref.where, salt=salt)

        def sampler(num_frames: int, fps: float) -> FrameSample:
            return self.processor.sample_frames(num_frames, fps, options)

        frames_fps = options.get("fps") or 2.0
        return self._reader.open_video(source, sampler, ref.where, frames_fps=frames_fps, salt=salt)

    def _load(self, opened: OpenedImage | OpenedVideo, options: Mapping[str, Any]) -> Media:
        return self._reader.load(opened, partial(self._target, opened.modality, options))

    def _target(
        self, modality: Modality, options: Mapping[str, Any], num_frames: int, height: int, width: int
    ) -> tuple[int, int]:
        return self.processor.resized(modality, (num_frames, height, width), options)

    def _finish(
        self, token_ids: list[int], media: list[Media], options: Mapping[str, Any], text: str | None, salt: str | None
    ) -> Prompt:
        prompt = self.processor.build(token_ids, media, options)
        if len(prompt.token_ids) > self.config.max_model_len:
            raise self._too_long(len(prompt.token_ids))
        return replace(
            prompt,
            text=text,
            media=tuple(salted(item, salt) for item in prompt.media),
            cache_salt=salt,
            stop_token_ids=self.processor.stop_token_ids,
        )

    # ------------------------------------------------------------------------------------------ checks

    @property
    def _max_chars(self) -> int:
        return self.config.max_model_len * self.tokenizer.longest_token

    def _options(self, mm_processor_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        given = _object(mm_processor_kwargs, "mm_processor_kwargs")
        server = {name: value for name, value in self.config.mm_processor_kwargs.items() if name not in given}
        options = {**server, **given}  # the request's come last
        self.processor.check_options(options)
        return options

    def _check_limits(self, refs: Sequence[MediaRef]) -> None:
        for modality, limit in self.config.limit_mm_per_prompt.items():
            count = sum(ref.modality == modality for ref in refs)
            if count > limit:
                raise RequestError(
                    f"at most {limit} {modality}(s) may be in one prompt (--limit-mm-per-prompt), got {count}",
                    param="messages",
                )

    def _check_media(
        self, token_ids: Sequence[int], opened: Sequence[OpenedImage | OpenedVideo], options: Mapping[str, Any]
    ) -> None:
        """Refuse by the headers what will be too much: tokens, pixels to decode, pixels to hold."""
        total = len(token_ids) - len(opened) + sum(self._num_tokens(item, options) for item in opened)
        if total > self.config.max_model_len:
            raise self._too_long(total)
        sizes = [item.size for item in opened]
        scaled = [
            (size[0], *self._target(item.modality, options, *size)) for item, size in zip(opened, sizes, strict=True)
        ]
        self._reader.limits.check_request(sizes, scaled)

    def _num_tokens(self, opened: OpenedImage | OpenedVideo, options: Mapping[str, Any]) -> int:
        try:
            return self.processor.num_tokens(opened.modality, opened.size, options)
        except RequestError as error:
            raise RequestError(f"{opened.where}: {error.message}", param=error.param) from None

    def _too_long(self, num_tokens: int, roughly: str = "", param: str = "messages") -> RequestError:
        return RequestError(
            f"This model's maximum context length is {self.config.max_model_len} tokens. However, you requested "
            f"{roughly}{num_tokens} tokens in the {param}. Please reduce the length of the {param}.",
            param=param,
            code="context_length_exceeded",
        )


def _text(prompt: str | list[int]) -> str | None:
    return valid_text(prompt) if isinstance(prompt, str) else None


def _object(value: Any, param: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{param} must be an object", param=param)
    return dict(value)
