"""A language model alone: prompts are tokens, and media are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from trifocal.errors import RequestError
from trifocal.media.media import Media
from trifocal.prompt.processor import TEXT_ONLY, Processor
from trifocal.types import Modality, Prompt


class TextProcessor(Processor):
    """Prompts of text. What other processors tell of media raises the one `RequestError` that users see."""

    modalities: tuple[Modality, ...] = ()

    def check_options(self, options: Mapping[str, Any]) -> None:
        if options:
            raise RequestError(f"mm_processor_kwargs: {next(iter(options))}: {TEXT_ONLY}", param="mm_processor_kwargs")

    def build(self, token_ids: Sequence[int], media: Sequence[Media], options: Mapping[str, Any]) -> Prompt:
        if media:
            _refuse()
        return Prompt(list(token_ids))

    @property
    def size_option(self) -> NoReturn:
        _refuse()

    def placeholder(self, modality: Modality) -> NoReturn:
        _refuse()

    def sample_frames(self, num_frames: int, fps: float, options: Mapping[str, Any]) -> NoReturn:
        _refuse()

    def plan(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    raise RequestError(TEXT_ONLY, param="messages")
