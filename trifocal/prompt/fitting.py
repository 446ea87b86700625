"""What an error about media that are too much proposes: options that were tried and with which they would fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trifocal.errors import RequestError
from trifocal.media.decode.image import OpenedImage
from trifocal.media.decode.video import EncodedVideo, OpenedVideo
from trifocal.prompt.item_options import ItemOptions, Options
from trifocal.prompt.processor import Processor
from trifocal.types import Modality


@dataclass(frozen=True, slots=True)
class SizedItem:
    """An item as a processor counts it: `size` is (frames, height, width)."""

    modality: Modality
    size: tuple[int, int, int]
    options: Options


@dataclass(frozen=True, slots=True)
class OpenedItem:
    """An item whose header is read, with its options."""

    opened: OpenedImage | OpenedVideo
    options: ItemOptions

    @property
    def sized(self) -> SizedItem:
        """The item as it is."""
        return SizedItem(self.opened.modality, self.opened.size, self.options.processor)

    def with_option(self, name: str, value: Any, processor: Processor) -> SizedItem:
        """The item as it would be with one more option of its own. Raises `RequestError` for a value that conflicts."""
        options = self.options.overlaid({name: value}, is_own=True)
        processor.check_options(options.processor)
        opened, size = self.opened, self.opened.size
        if name == "num_frames" and isinstance(opened, OpenedVideo) and not opened.is_fixed:
            num_frames, is_file = opened.num_frames, isinstance(opened.source, EncodedVideo)
            if is_file or value < num_frames:
                wanted = options.for_file(num_frames, opened.fps) if is_file else options.for_frames()
                num_frames = len(processor.sample_frames(num_frames, opened.fps, wanted).indices)
            size = (num_frames, *size[1:])
        return SizedItem(opened.modality, size, options.processor)


def proposals(
    items: Sequence[OpenedItem], processor: Processor, fits: Callable[[Sequence[SizedItem]], bool]
) -> list[str]:
    """`num_frames 8`, `max_pixels 50176` and the like: the greatest values found with which all items `fit`.

    Each is for every item, and enough without the other.
    """
    ranges = []
    frames = [item.opened.size[0] for item in items if isinstance(item.opened, OpenedVideo)]
    if frames:
        ranges.append(("num_frames", 1, max(frames), 1))
    size = processor.size_option
    ranges.append((size.name, size.least, size.most, size.step))
    found = []
    for name, least, most, step in ranges:

        def is_enough(value: int, name: str = name) -> bool:
            try:
                return fits([item.with_option(name, value, processor) for item in items])
            except RequestError:  # it is below another option, or makes a strip that the family does not take
                return False

        value = greatest(least, most, step, is_enough)
        if value is not None:
            found.append(f"{name} {value}")
    return found


def greatest(least: int, most: int, step: int, is_enough: Callable[[int], bool]) -> int | None:
    """A value from `least` to `most`, in steps, that is enough, and the greatest if all below it are as well."""
    if not is_enough(least):
        return None
    low, high = 0, (most - least) // step + 1  # `low` steps are enough; `high` are beyond the range
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(least + middle * step):
            low = middle
        else:
            high = middle
    return least + low * step
