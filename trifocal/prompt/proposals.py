"""What an error about media that are too much proposes: options that were tried and with which they would fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trifocal.errors import RequestError
from trifocal.media.decode.video import OpenedVideo
from trifocal.media.decoding import Opened
from trifocal.media.plan import ItemPlan
from trifocal.prompt.item_options import ItemOptions
from trifocal.prompt.processor import Processor


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """An item whose header is read, its options, and what becomes of it."""

    opened: Opened
    options: ItemOptions
    plan: ItemPlan

    def changed(self, name: str, value: Any, processor: Processor) -> ItemPlan:
        """What would become of it with one more option of its own. Raises `RequestError` for one that conflicts."""
        options = self.options.overlaid({name: value}, is_own=True)
        processor.check_options(options.processor)
        opened, size = self.opened, self.opened.size
        if name == "num_frames" and isinstance(opened, OpenedVideo) and not opened.is_fixed:
            total, fps, is_file = opened.header.num_frames, opened.header.fps, isinstance(opened.source, bytes)
            count = total
            if is_file or value < total:
                wanted = options.for_file(total, fps) if is_file else options.for_frames()
                count = len(processor.sample_frames(total, fps, wanted).indices)
            size = (count, *size[1:])
        return processor.plan(opened.modality, size, options.processor)


def proposals(
    items: Sequence[PlannedItem], processor: Processor, fits: Callable[[Sequence[ItemPlan]], bool]
) -> list[str]:
    """`num_frames 8`, `max_pixels 50176` and the like: the greatest values found with which the plans `fit`.

    Each is for every item, and enough without the other.
    """
    ranges = []
    frames = [item.plan.num_frames for item in items if isinstance(item.opened, OpenedVideo)]
    if frames:
        ranges.append(("num_frames", 1, max(frames), 1))
    size = processor.size_option
    ranges.append((size.name, size.least, size.most, size.step))
    found = []
    for name, least, most, step in ranges:

        def is_enough(value: int, name: str = name) -> bool:
            try:
                return fits([item.changed(name, value, processor) for item in items])
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
