"""`PromptBuilder`: from what a client sends, or a script passes, to the `Prompt` that the engine takes.

Order of work: check the messages, render and tokenise them, refuse what cannot fit; fetch all media at once; read their
headers and refuse again what cannot fit, before any pixel is touched; decode; let the family's processor build. All but
the fetching runs in threads, never on the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from trifocal.config.arguments import part
from trifocal.config.engine import EngineConfig
from trifocal.errors import ArgumentError, ConfigError, RequestError, errors_in_keywords
from trifocal.families import PROCESSORS
from trifocal.media.cache import MediaCache
from trifocal.media.decode.image import OpenedImage
from trifocal.media.decode.video import num_frames_to_choose_from
from trifocal.media.fetch.fetcher import Fetcher, fetch_all, run_all
from trifocal.media.fetch.policy import FetchPolicy
from trifocal.media.given import as_url
from trifocal.media.hashing import salted
from trifocal.media.limits import MediaLimits, TooManyFramesError
from trifocal.media.media import FrameSample, Media, MediaRef
from trifocal.media.reader import MediaReader
from trifocal.media.watch import timed
from trifocal.prompt.fitting import OpenedItem, SizedItem, greatest, proposals
from trifocal.prompt.item_options import (
    ItemOptions,
    check_list,
    reading_layer,
    renamed_option_errors,
    seen_by_processor,
)
from trifocal.prompt.messages import MessageParser
from trifocal.prompt.part_options import whole
from trifocal.prompt.processor import Processor
from trifocal.prompt.sandbox import QUICK_SECONDS, RenderTimeoutError
from trifocal.prompt.template import ChatTemplate, RenderedTooLongError, check_variables, read_chat_template
from trifocal.threads import LoopThread, Threads
from trifocal.tokenizer import load_tokenizer, valid_text
from trifocal.types import Modality, Prompt

_MAX_THREADS = 8
_TEXT_THREADS = 2
_MAX_GIVEN_TEMPLATES = 16
_CHARS_PER_TOKEN = 8  # more than any language has on average
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
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

    `chat_template` is a file or a template that replaces the checkpoint's; `chat_template_content_format` says what it
    takes (see `ChatTemplate.formatted`), `chat_template_kwargs` are variables for it, which a request may replace.
    Without a `fetch_policy` only the public internet is fetched from. What a request gets wrong raises `RequestError`,
    naming the place in the messages.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        fetch_policy: FetchPolicy | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        chat_template_content_format: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.model.tokenizer, trust_remote_code=config.model.trust_remote_code)
        self.processor: Processor = PROCESSORS.get(config.model.spec.architecture)(config.model.spec, self.tokenizer)
        self._server_options = self._options_of_server()
        source = read_chat_template(chat_template) if chat_template else self.tokenizer.chat_template
        source = source or self.processor.chat_template
        self._template = ChatTemplate(source, self.tokenizer.special_tokens) if source else None
        if self._template is not None:
            self._template = self._template.formatted(chat_template_content_format)
        self._given_templates: dict[str, ChatTemplate] = {}
        self._template_kwargs = dict(chat_template_kwargs or {})
        try:
            check_variables(self._template_kwargs)
        except RequestError as error:
            raise ArgumentError("{default_chat_template_kwargs}: {}", error.message) from None
        threads = max(config.media.num_threads or min(_MAX_THREADS, os.cpu_count() or 1), 1)
        self._executor = Threads(threads, "media")
        # Text has threads of its own: it must not wait until a hundred pictures of somebody else are decoded.
        self._text_executor = Threads(_TEXT_THREADS, "text")
        self._slow_executor = Threads(1, "slow")
        self._media_at_once = max(threads - 1, 1)  # of one request: another's single picture gets its turn
        cache = MediaCache(config.cache.mm_processor_cache_bytes)
        self._reader = MediaReader(part(MediaLimits, config.media), num_decoders=threads, cache=cache)
        self._loop: LoopThread | None = None
        self._loop_lock = Lock()
        self._fetch_policy = fetch_policy or FetchPolicy()
        self._fetcher = Fetcher(self._executor, self._fetch_policy, config=self.config.media.fetch)

    # ------------------------------------------------------------------------------------------ entry points

    async def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Any] | None = None,
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
        options = self._options(mm_processor_kwargs, media_io_kwargs)
        return await self._chat(render, self._fetcher, options, cache_salt)

    def chat_sync(
        self,
        messages: list[dict[str, Any]],
        *,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        media_io_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str | None = None,
        **rendering: Any,
    ) -> Prompt:
        """`chat` for a caller without an event loop, with the same keywords; media may also be paths and objects."""
        options = self._options(mm_processor_kwargs, media_io_kwargs)

        def render(**more: Any) -> Rendered:
            rendered = self.render(messages, **rendering, **more)
            return replace(rendered, media=[_with_url(ref) for ref in rendered.media])

        return self._with_fetcher(lambda fetcher: self._chat(render, fetcher, options, cache_salt))

    def _with_fetcher(self, work: Callable[[Fetcher], Coroutine[Any, Any, T]]) -> T:
        """Run `work` with a fetcher of its own, beside any loop that the caller may be running (notebooks do)."""

        async def run() -> T:
            fetcher = Fetcher(
                self._executor, self._fetch_policy, config=self.config.media.fetch
            )  # HTTP clients belong to one loop
            try:
                return await work(fetcher)
            finally:
                await fetcher.aclose()

        return self.open_loop().run(run())

    def open_loop(self) -> LoopThread:
        """The loop for callers without one (`chat_sync`, `build`); it is started by the first call."""
        with self._loop_lock:
            self._loop = self._loop or LoopThread()
            return self._loop

    async def completion(
        self, prompt: str | list[int], *, add_special_tokens: bool = True, cache_salt: str | None = None
    ) -> Prompt:
        """The prompt of a raw completion: control tokens in it count as such."""
        encode = partial(self._encode, prompt, add_special_tokens=add_special_tokens)
        token_ids = await self._off_loop(encode)
        finish = partial(self._finish, token_ids, [], ItemOptions(), _text(prompt), cache_salt)
        return await self._off_loop(finish)

    def build(
        self,
        prompt: str | list[int],
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str | None = None,
    ) -> Prompt:
        """The prompt of `LLM.generate`: a text with placeholders, and media as objects, URLs or paths."""
        options = self._options(mm_processor_kwargs, None)
        refs = [MediaRef("image", image, f"multi_modal_data['image'][{k}]") for k, image in enumerate(images)]
        refs += [MediaRef("video", video, f"multi_modal_data['video'][{k}]") for k, video in enumerate(videos)]
        self._check_limits(refs)
        token_ids = self._encode(prompt, add_special_tokens=True)
        each = self._item_options(refs, options)
        refs = [_with_url(ref) for ref in refs]
        sources = [ref.source for ref in refs]
        if any(isinstance(source, str | list | tuple) for source in sources):
            sources = self._with_fetcher(partial(fetch_all, refs))
        items = [self._open(ref, source, own, cache_salt) for ref, source, own in zip(refs, sources, each, strict=True)]
        self._check_media(token_ids, items, options)
        media = [self._load(item) for item in items]
        return self._finish(token_ids, media, options, _text(prompt), cache_salt, items)

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
            raise RequestError(
                "the checkpoint has no chat template; give one by --chat-template (LLM: chat_template=)",
                param="messages",
            )
        template = template.formatted(chat_template_content_format)
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        guard = self.tokenizer.guard()
        keeps_order = self.config.media.interleave_mm_strings
        parser = MessageParser(template, self.processor.placeholder, keeps_order=keeps_order)
        try:
            conversation = parser.parse(messages, guard)
            given = _object(chat_template_kwargs, "chat_template_kwargs")
            extra = guard.hide_all({**self._template_kwargs, **given})
        except RecursionError:
            raise RequestError("the messages or their arguments are nested too deeply", param="messages") from None
        self._check_limits(conversation.media)
        open_end = conversation.leave_open(guard.mark) if continue_final_message else None
        try:
            text = template.render(
                conversation.messages,
                add_generation_prompt=add_generation_prompt,
                max_chars=self._max_chars,
                extra=extra,
                max_seconds=max_seconds,
            )
        except RenderedTooLongError:
            raise self._too_long(self.config.scheduling.max_model_len + 1, "at least ") from None
        if open_end is not None:
            text = open_end.cut(text)
        token_ids = self._tokenize(text, partial(self.tokenizer.encode_chat, protected=guard.protected), "messages")
        self._check_media(token_ids, [], ItemOptions())
        return Rendered(guard.reveal(text), token_ids, conversation.media)

    def _given_template(self, text_or_path: str) -> ChatTemplate:
        """The template of one call; making it takes two renderings, so some are kept."""
        try:
            with errors_in_keywords():
                source = read_chat_template(text_or_path)
                template = self._given_templates.get(source) or ChatTemplate(source, self.tokenizer.special_tokens)
        except ConfigError as error:
            raise RequestError(str(error), param="chat_template") from None
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
        self, render: Callable[..., Rendered], fetcher: Fetcher, options: ItemOptions, cache_salt: str | None
    ) -> Prompt:
        rendered = await self._rendered(render)
        refs = rendered.media
        if not refs:
            finish = partial(self._finish, rendered.token_ids, [], options, rendered.text, cache_salt)
            return await self._off_loop(finish)
        each = await self._off_loop(partial(self._item_options, refs, options))
        with timed("fetch"):
            sources = await fetch_all(refs, fetcher)
        with timed("decode"):
            opens = [
                partial(self._open, ref, source, own, cache_salt)
                for ref, source, own in zip(refs, sources, each, strict=True)
            ]
            items = await self._run_media(opens)
            await self._run_media([partial(self._check_media, rendered.token_ids, items, options)])
            media = await self._run_media([partial(self._load, item) for item in items])
        with timed("process"):
            finish = partial(self._finish, rendered.token_ids, media, options, rendered.text, cache_salt, items)
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
        vocab_size = self.config.model.spec.text.vocab_size
        for token_id in prompt:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                message = f"token id {token_id!r} is not in the vocabulary (0 .. {vocab_size - 1})"
                raise RequestError(message, param="prompt")
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        return prompt

    def _tokenize(self, text: str, encode: Callable[[str], list[int]], param: str) -> list[int]:
        """Ids of `text`; one that is far too long is refused by its beginning: all of it might take seconds."""
        limit = self.config.scheduling.max_model_len
        beginning = text[: limit * _CHARS_PER_TOKEN]
        is_cut = len(beginning) < len(text)
        if len(text) > self._max_chars or (is_cut and len(encode(beginning)) > limit + _SEAM):
            raise self._too_long(limit + 1, "at least ", param)
        return encode(text)

    def _open(self, ref: MediaRef, source: Any, options: ItemOptions, salt: str | None) -> OpenedItem:
        if ref.modality == "image":
            return OpenedItem(self._reader.open_image(source, ref.where, salt=salt), options)
        is_file = isinstance(source, bytes)
        if is_file and {"fps", "num_frames"} <= ref.options.keys():
            raise RequestError(f"{ref.where}: give fps or num_frames (nframes), not both", param=ref.where)
        facts = options.facts
        seen = [(0 if is_file else num_frames_to_choose_from(source, facts), facts.fps)]

        def sampler(num_frames: int, fps: float) -> FrameSample:
            seen.append((num_frames, fps))
            wanted = options.for_file(num_frames, fps) if is_file else options.for_frames()
            if options.is_capped:
                self._reader.limits.check_frames(wanted.get("num_frames", 0), ref.where)
            return self.processor.sample_frames(num_frames, fps, wanted)

        try:
            opened = self._reader.open_video(source, sampler, ref.where, facts=facts, salt=salt)
        except TooManyFramesError as error:
            raise self._with_frames_that_fit(error, *seen[-1]) from None
        return OpenedItem(opened, options)

    def _load(self, item: OpenedItem) -> Media:
        options = item.options.processor
        media = self._reader.load(item.opened, partial(self._target, item.opened.modality, options))
        return replace(media, options=options)

    def _target(
        self, modality: Modality, options: Mapping[str, Any], num_frames: int, height: int, width: int
    ) -> tuple[int, int]:
        return self.processor.resized(modality, (num_frames, height, width), options)

    def _finish(
        self,
        token_ids: list[int],
        media: list[Media],
        options: ItemOptions,
        text: str | None,
        salt: str | None,
        items: Sequence[OpenedItem] = (),
    ) -> Prompt:
        prompt = self.processor.build(token_ids, media, options.processor)
        if len(prompt.token_ids) > self.config.scheduling.max_model_len:
            raise self._too_long(len(prompt.token_ids))
        self._check_encoder_room(prompt, items)
        return replace(
            prompt,
            text=text,
            media=tuple(salted(item, salt) for item in prompt.media),
            cache_salt=salt,
            stop_token_ids=self.processor.stop_token_ids,
        )

    # ------------------------------------------------------------------------------------------ options

    def _options_of_server(self) -> ItemOptions:
        """The two flags' as the first layers of every request's. Raises `ConfigError`."""
        try:
            self.processor.check_options(seen_by_processor(self.config.media.mm_processor_kwargs))
        except RequestError as error:
            message = error.message.removeprefix("mm_processor_kwargs: ")
            raise ArgumentError("{mm_processor_kwargs}: {}", message) from None
        try:
            reading = reading_layer(self.config.media.media_io_kwargs)
            self._check_reading(reading)
        except RequestError as error:
            message = error.message.removeprefix("media_io_kwargs: ")
            raise ArgumentError("{media_io_kwargs}: {}", message) from None
        options = ItemOptions().overlaid(self.config.media.mm_processor_kwargs)
        return options.overlaid(reading, is_own=True, is_capped=True)

    def _options(
        self, mm_processor_kwargs: Mapping[str, Any] | None, media_io_kwargs: Mapping[str, Any] | None
    ) -> ItemOptions:
        """The request's over the server's."""
        given = whole(_object(mm_processor_kwargs, "mm_processor_kwargs"))
        server = {name: value for name, value in self.config.media.mm_processor_kwargs.items() if name not in given}
        self.processor.check_options(seen_by_processor({**server, **given}))
        reading = reading_layer(_object(media_io_kwargs, "media_io_kwargs"))
        self._check_reading(reading)
        return self._server_options.overlaid(given).overlaid(reading, is_own=True, is_capped=True)

    def _check_reading(self, reading: Mapping[str, Any]) -> None:
        """Whether the family can do what media_io_kwargs say."""
        with renamed_option_errors("media_io_kwargs: video", "media_io_kwargs"):
            frames = {name: reading[name] for name in ("num_frames", "fps") if reading.get(name) not in (None, -1)}
            self.processor.check_options(frames)

    def _item_options(self, refs: Sequence[MediaRef], request: ItemOptions) -> list[ItemOptions]:
        """The parts' over the request's. Raises `RequestError` naming the part."""
        num_videos = sum(ref.modality == "video" for ref in refs)
        check_list(request, num_videos)
        each, num_seen = [], 0
        for ref in refs:
            options = request.of_item(ref.options, num_seen)
            num_seen += ref.modality == "video"
            with renamed_option_errors(ref.where, ref.where):
                self.processor.check_options({**options.processor, **seen_by_processor(ref.options)})
            each.append(options)
        return each

    # ------------------------------------------------------------------------------------------ checks

    @property
    def _max_chars(self) -> int:
        return self.config.scheduling.max_model_len * self.tokenizer.longest_token

    def _check_limits(self, refs: Sequence[MediaRef]) -> None:
        for modality, limit in self.config.media.limit_mm_per_prompt.items():
            count = sum(ref.modality == modality for ref in refs)
            if count > limit:
                raise RequestError(
                    f"at most {limit} {modality}(s) may be in one prompt (--limit-mm-per-prompt), got {count}",
                    param="messages",
                )

    def _check_media(self, token_ids: Sequence[int], items: Sequence[OpenedItem], options: ItemOptions) -> None:
        """Refuse by the headers what will be too much: tokens, pixels to decode, pixels to hold."""
        num_images = sum(item.opened.modality == "image" for item in items)
        num_text = len(token_ids) - len(items) + self.processor.num_label_tokens(num_images, options.processor)
        counts = [self._num_tokens(item) for item in items]
        error = self._excess(num_text + sum(counts), [item.sized for item in items])
        if error is None:
            return
        if not items:
            raise error

        largest = max(range(len(items)), key=counts.__getitem__)
        opened = items[largest].opened
        frames = "" if isinstance(opened, OpenedImage) else f" for {len(opened.sample.indices)} frames"
        hint = f"{opened.where} takes {counts[largest]} tokens{frames}."
        message = f"{error.message.rstrip('.')}. {hint}{self._proposal(items, num_text)}"
        raise RequestError(message, param=error.param, code=error.code)

    def _check_encoder_room(self, prompt: Prompt, items: Sequence[OpenedItem]) -> None:
        """Refuse an item of more embeddings than the encoder's cache holds, as the engine would, with a proposal."""
        largest = max(prompt.media, key=lambda item: item.span.num_embeds, default=None)
        if largest is None or largest.span.num_embeds <= self._encoder_room:
            return
        num_text = len(prompt.token_ids) - sum(map(self._num_tokens, items))
        raise RequestError(
            f"one {largest.modality} takes {largest.span.num_embeds} embeddings, above the {self._encoder_room} that "
            f"the encoder cache holds (--encoder-cache-gib); send less.{self._proposal(items, num_text)}",
            param="messages",
            status=413,
        )

    @property
    def _encoder_room(self) -> int:
        """Embeddings that the encoder's cache holds."""
        model = self.config.model
        return self.config.cache.encoder_cache_bytes // (model.spec.text.hidden_size * _DTYPE_BYTES[model.dtype])

    def _proposal(self, items: Sequence[OpenedItem], num_text: int) -> str:
        """What would bring these items, beside `num_text` other tokens, within all limits, and where to say it."""

        def fits(changed: Sequence[SizedItem]) -> bool:
            counts = [self.processor.num_tokens(item.modality, item.size, item.options) for item in changed]
            total = num_text + sum(counts) + 1  # an answer has at least one token
            return max(counts) <= self._encoder_room and self._excess(total, changed) is None

        found = proposals(items, self.processor, fits)
        is_overruled = any(item.options.overrules_request for item in items)
        place = "in each part that it is for" if is_overruled else "in mm_processor_kwargs or in each part"
        return f" It would fit with {' or '.join(found)} ({place})." if found else ""

    def _excess(self, total: int, items: Sequence[SizedItem]) -> RequestError | None:
        """The error about a prompt of `total` tokens with these items, if it is too much."""
        if total > self.config.scheduling.max_model_len:
            return self._too_long(total)
        sizes = [item.size for item in items]
        scaled = [(item.size[0], *self._target(item.modality, item.options, *item.size)) for item in items]
        try:
            self._reader.limits.check_request(sizes, scaled)
        except RequestError as error:
            return error
        return None

    def _num_tokens(self, item: OpenedItem) -> int:
        sized = item.sized
        try:
            return self.processor.num_tokens(sized.modality, sized.size, sized.options)
        except RequestError as error:
            raise RequestError(f"{item.opened.where}: {error.message}", param=error.param) from None

    def _with_frames_that_fit(self, error: RequestError, num_frames: int, fps: float) -> RequestError:
        """`error` about too many chosen frames, with the `num_frames` that would be allowed.

        `num_frames`, `fps`: what there was to choose from, 0 if nothing was.
        """
        if not num_frames:
            message = f"{error.message}; with do_sample_frames false all are used: send fewer, or leave that out"
            return RequestError(message, param=error.param)
        most = self._reader.limits.max_video_frames

        def is_enough(value: int) -> bool:
            sample = self.processor.sample_frames(num_frames, fps, {"num_frames": value})
            return len(sample.indices) <= most

        found = greatest(1, most, 1, is_enough)
        hint = "" if found is None else f"; num_frames {found} would be allowed"
        return RequestError(f"{error.message}; choose fewer by fps or num_frames{hint}", param=error.param)

    def _too_long(self, num_tokens: int, roughly: str = "", param: str = "messages") -> RequestError:
        return RequestError(
            f"This model's maximum context length is {self.config.scheduling.max_model_len} tokens. However, you "
            f"requested {roughly}{num_tokens} tokens in the {param}. Please reduce the length of the {param}.",
            param=param,
            code="context_length_exceeded",
        )


def _with_url(ref: MediaRef) -> MediaRef:
    return replace(ref, source=as_url(ref.source, ref.where))


def _text(prompt: str | list[int]) -> str | None:
    return valid_text(prompt) if isinstance(prompt, str) else None


def _object(value: Any, param: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{param} must be an object", param=param)
    return dict(value)
