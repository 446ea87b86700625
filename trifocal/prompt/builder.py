"""`PromptBuilder`: from what a client sends, or a script passes, to the `Prompt` that the engine takes.

Order of work: check the messages, render and tokenise them, refuse what cannot fit; fetch all media at once; read their
headers, plan them and refuse again what cannot fit, before any pixel is touched; decode; let the family's processor
build. All but the fetching runs in threads, never on the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from trifocal.config.arguments import part
from trifocal.config.engine import EngineConfig
from trifocal.families import PROCESSORS
from trifocal.helpers.lanes import Lanes, Timed
from trifocal.media.cache import MediaCache
from trifocal.media.fetch.fetcher import Fetcher, fetch_all, run_all
from trifocal.media.fetch.policy import FetchPolicy
from trifocal.media.given import as_url
from trifocal.media.hashing import salted
from trifocal.media.limits import MediaLimits
from trifocal.media.media import Media, MediaRef
from trifocal.media.multi_modal_data import media_refs
from trifocal.media.reader import MediaReader
from trifocal.media.watch import timed
from trifocal.prompt.item_options import ItemOptions
from trifocal.prompt.planning import MediaPlanner
from trifocal.prompt.processor import Processor
from trifocal.prompt.rendering import ChatRenderer, Rendered
from trifocal.prompt.request_options import RequestOptions
from trifocal.prompt.text import TextEncoder
from trifocal.threads import LoopThread, Threads
from trifocal.tokenizer import load_tokenizer, valid_text
from trifocal.types import Prompt

_MAX_THREADS = 8
_TEXT_THREADS = 2
T = TypeVar("T")


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
        self._options = RequestOptions(config, self.processor)
        threads = max(config.media.num_threads or min(_MAX_THREADS, os.cpu_count() or 1), 1)
        cache = MediaCache(config.cache.mm_processor_cache_bytes)
        self._reader = MediaReader(part(MediaLimits, config.media), num_decoders=threads, cache=cache)
        self._encoder = TextEncoder(config, self.tokenizer, self.processor)
        self._planner = MediaPlanner(config, self.processor, self._reader, self._encoder)
        self._renderer = ChatRenderer(
            self.tokenizer,
            self.processor,
            self._encoder,
            chat_template=chat_template,
            content_format=chat_template_content_format,
            template_kwargs=chat_template_kwargs,
            keeps_order=config.media.interleave_mm_strings,
            check_counts=self._planner.check_counts,
        )
        self.render = self._renderer.render
        self._media_threads = Threads(threads, "media")
        # Text has threads of its own: it must not wait until a hundred pictures of somebody else are decoded.
        self._text = Lanes(_TEXT_THREADS, "text")
        self._media_at_once = max(threads - 1, 1)  # of one request: another's single picture gets its turn
        self._loop: LoopThread | None = None
        self._loop_lock = Lock()
        self._fetch_policy = fetch_policy or FetchPolicy()
        self._fetcher = Fetcher(self._media_threads, self._fetch_policy, config=config.media.fetch)

    # ------------------------------------------------------------------------------------------ with a loop

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
        options = self._options.of_request(mm_processor_kwargs, media_io_kwargs)
        return await self._chat(render, self._fetcher, options, cache_salt)

    async def completion(
        self, prompt: str | list[int], *, add_special_tokens: bool = True, cache_salt: str | None = None
    ) -> Prompt:
        """The prompt of a raw completion: control tokens in it count as such."""
        encode = partial(self._encoder.prompt, prompt, add_special_tokens=add_special_tokens)
        token_ids = await self._text.run(encode)
        return await self._text.run(partial(self._finish, token_ids, [], ItemOptions(), _text_of(prompt), cache_salt))

    async def aclose(self) -> None:
        """Close connections, decoders and threads."""
        await self._fetcher.aclose()
        self.close()

    # ------------------------------------------------------------------------------------------ without

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
        options = self._options.of_request(mm_processor_kwargs, media_io_kwargs)

        def render(*, max_seconds: float | None = None) -> Rendered:
            rendered = self.render(messages, **rendering, max_seconds=max_seconds)
            return replace(rendered, media=[_with_url(ref) for ref in rendered.media])

        return self._with_fetcher(lambda fetcher: self._chat(render, fetcher, options, cache_salt))

    def build(
        self,
        prompt: str | list[int],
        multi_modal_data: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str | None = None,
    ) -> Prompt:
        """The prompt of `LLM.generate`: a text with placeholders, and media as objects, URLs or paths."""
        options = self._options.of_request(mm_processor_kwargs, None)
        refs = media_refs(multi_modal_data or {})
        self._planner.check_counts(refs)
        token_ids = self._encoder.prompt(prompt, add_special_tokens=True)
        each = self._options.of_items(refs, options)
        refs = [_with_url(ref) for ref in refs]
        sources = [ref.source for ref in refs]
        if any(isinstance(source, str | list | tuple) for source in sources):
            sources = self._with_fetcher(partial(fetch_all, refs))
        items = [
            self._planner.open(ref, source, own, cache_salt)
            for ref, source, own in zip(refs, sources, each, strict=True)
        ]
        self._planner.check(token_ids, items, options)
        media = [self._planner.load(item) for item in items]
        return self._finish(token_ids, media, options, _text_of(prompt), cache_salt)

    def open_loop(self) -> LoopThread:
        """The loop for callers without one (`chat_sync`, `build`); it is started by the first call."""
        with self._loop_lock:
            self._loop = self._loop or LoopThread()
            return self._loop

    def close(self) -> None:
        """As `aclose`, for users of the synchronous methods only."""
        if self._loop is not None:
            self._loop.end()
        self._media_threads.shutdown(wait=False, cancel_futures=True)
        self._text.close()
        self._reader.close()

    # ------------------------------------------------------------------------------------------ the steps

    async def _chat(
        self, render: Timed[Rendered], fetcher: Fetcher, options: ItemOptions, cache_salt: str | None
    ) -> Prompt:
        rendered = await self._text.run_timed(render)
        token_ids, refs = rendered.token_ids, rendered.media
        finish = partial(self._finish, token_ids, options=options, text=rendered.text, salt=cache_salt)
        if not refs:
            return await self._text.run(partial(finish, []))
        each = await self._text.run(partial(self._options.of_items, refs, options))
        with timed("fetch"):
            sources = await fetch_all(refs, fetcher)
        with timed("decode"):
            opens = [
                partial(self._planner.open, ref, source, own, cache_salt)
                for ref, source, own in zip(refs, sources, each, strict=True)
            ]
            items = await self._run_media(opens)
            await self._run_media([partial(self._planner.check, token_ids, items, options)])
            media = await self._run_media([partial(self._planner.load, item) for item in items])
        with timed("process"):
            [prompt] = await self._run_media([partial(finish, media)])
        return prompt

    def _finish(
        self, token_ids: list[int], media: list[Media], options: ItemOptions, text: str | None, salt: str | None
    ) -> Prompt:
        prompt = self.processor.build(token_ids, media, options.processor)
        self._encoder.check_length(prompt.token_ids)
        return replace(
            prompt,
            text=text,
            media=tuple(salted(item, salt) for item in prompt.media),
            cache_salt=salt,
            stop_token_ids=self.processor.stop_token_ids,
        )

    async def _run_media(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Media work of one request, a few at once."""
        loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(self._media_at_once)

        async def run(work: Callable[[], T]) -> T:
            async with gate:
                return await loop.run_in_executor(self._media_threads, work)

        return await run_all([run(work) for work in works])

    def _with_fetcher(self, work: Callable[[Fetcher], Coroutine[Any, Any, T]]) -> T:
        """Run `work` with a fetcher of its own, beside any loop that the caller may be running (notebooks do)."""

        async def run() -> T:
            fetcher = Fetcher(
                self._media_threads, self._fetch_policy, config=self.config.media.fetch
            )  # HTTP clients belong to one loop
            try:
                return await work(fetcher)
            finally:
                await fetcher.aclose()

        return self.open_loop().run(run())


def _with_url(ref: MediaRef) -> MediaRef:
    return replace(ref, source=as_url(ref.source, ref.where))


def _text_of(prompt: str | list[int]) -> str | None:
    return valid_text(prompt) if isinstance(prompt, str) else None
