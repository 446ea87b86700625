"""The contract of a family's processor: media and tokens in, `Prompt` out; in the server process, without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trifocal.errors import ConfigError, RequestError
from trifocal.media.media import FrameSample, Media
from trifocal.media.modalities import MODALITIES
from trifocal.media.plan import ItemPlan
from trifocal.model_spec import ModelSpec
from trifocal.tokenizer import Tokenizer
from trifocal.types import Modality, Prompt

TEXT_ONLY = "this model takes text only, no pictures or clips"


@dataclass(frozen=True, slots=True)
class SizeOption:
    """The option by which an item may be made smaller: its least useful value, its greatest, and the step between."""

    name: str
    least: int
    most: int
    step: int = 1


class Processor(ABC):
    """One family's preprocessing.

    `options` are mm_processor_kwargs: the server's, overridden by the request's and by the item's own. An unknown or
    bad one raises `RequestError(param="mm_processor_kwargs")` whose message begins with that name and a colon.

    `modalities` are the kinds of media that the family takes. `chat_template` serves a checkpoint that brings none.
    `stop_token_ids`: see `Prompt`. A family has no other public names than these: nobody would call them.
    """

    modalities: tuple[Modality, ...] = ("image", "video")
    chat_template: str | None = None
    stop_token_ids: tuple[int, ...] = ()

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer) -> None:
        self.spec = spec
        self.tokenizer = tokenizer

    def normalize_prompt(self, text: str) -> str:
        """A raw prompt as it is tokenised, for a family whose placeholders may be spelt in another way as well."""
        return text

    def control_token(self, name: str) -> int:
        """The id of a control token that the family's prompts are made with. Raises `ConfigError` if there is none."""
        token_id = self.tokenizer.token_to_id(name)
        if token_id is None:
            raise ConfigError(f"the tokenizer has no {name}: pictures cannot be placed")
        return token_id

    @abstractmethod
    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `RequestError` for an option that is unknown or out of range."""

    @property
    @abstractmethod
    def size_option(self) -> SizeOption:
        """What an error about a prompt that is too long names beside `num_frames`."""

    @abstractmethod
    def placeholder(self, modality: Modality) -> str:
        """One media item in a prompt, before expansion (Qwen: `<|vision_start|><|image_pad|><|vision_end|>`)."""

    @abstractmethod
    def sample_frames(self, num_frames: int, fps: float, options: Mapping[str, Any]) -> FrameSample:
        """Choose frames of a clip with `num_frames` frames at `fps`; the same choice gives pixels and positions."""

    @abstractmethod
    def plan(self, modality: Modality, size: tuple[int, int, int], options: Mapping[str, Any]) -> ItemPlan:
        """What becomes of an item of `size` (sampled frames, height, width), before any pixel work.

        The one place where a family works out sizes and counts. Raises `RequestError` for a size that it cannot take.
        """

    def plan_of(self, item: Media, options: Mapping[str, Any]) -> ItemPlan:
        """The plan that `item` brings, else one for its pixels as they are."""
        return item.plan or self.plan(item.modality, item.size, options)

    def num_label_tokens(self, places: Sequence[Modality], options: Mapping[str, Any]) -> int:
        """Prompt positions that the numbers of a prompt's items take, where a family writes them."""
        return 0

    @abstractmethod
    def build(self, token_ids: Sequence[int], media: Sequence[Media], options: Mapping[str, Any]) -> Prompt:
        """Expand the placeholders in `token_ids` (one per item), preprocess `media` and compute positions.

        An item is made what its plan says. `options` are those of the prompt, and of items that bring no plan.
        Images go to image placeholders and videos to video placeholders, each in order of appearance. Raises
        `RequestError(param="messages")` where counts don't match or an item cannot be processed.
        """

    def in_prompt_order(
        self, places: Sequence[Modality], media: Sequence[Media], spelling: Callable[[Modality], str]
    ) -> list[Media]:
        """`media` in the order of the placeholders, of whose modalities `places` tells: the k-th place of a modality
        takes its k-th item.

        Raises `RequestError` where counts don't match; `spelling` says in it how a placeholder is written.
        """
        queues: dict[Modality, list[Media]] = {modality: [] for modality in MODALITIES}
        for item in media:
            queues[item.modality].append(item)
        for modality, queue in queues.items():
            num_places, given = places.count(modality), len(queue)
            if num_places != given:
                raise RequestError(
                    f"the prompt has {num_places} {modality} placeholder{'s' * (num_places != 1)} "
                    f"({spelling(modality)}) but {given} {modality}{'s' * (given != 1)} came with it",
                    param="messages",
                )
        iterators = {modality: iter(queue) for modality, queue in queues.items()}
        return [next(iterators[modality]) for modality in places]
