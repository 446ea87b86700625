"""`MediaReader`: opens and loads media of all modalities."""

from __future__ import annotations

from typing import Any

from trifocal.media.cache import MediaCache
from trifocal.media.decode.video import FrameFacts, OpenedVideo, Sampler, whole_clip
from trifocal.media.decoding import Decoding, ItemReader, Opened, Planner
from trifocal.media.limits import MediaLimits
from trifocal.media.media import Media
from trifocal.media.modalities import MODALITIES
from trifocal.media.plan import ItemPlan
from trifocal.registry import Registry
from trifocal.types import Modality

READERS: Registry[type[ItemReader]] = Registry("modality", {info.name: info.reader for info in MODALITIES.values()})


class MediaReader:
    """Opens media (header only) and loads them (pixels). Safe to use from several threads; blocks.

    At most `num_decoders` processes. What `cache` holds of files with the same `salt` is not decoded again. Everything
    raises `RequestError` that names the item by `where`.
    """

    def __init__(self, limits: MediaLimits, num_decoders: int, cache: MediaCache | None = None) -> None:
        self.limits = limits
        self._decoding = Decoding(limits, num_decoders, cache or MediaCache(0))
        self._readers = {modality: READERS.get(modality)(self._decoding) for modality in MODALITIES}

    def open(
        self,
        modality: Modality,
        source: Any,
        where: str,
        *,
        sampler: Sampler = whole_clip,
        facts: FrameFacts | None = None,
        salt: str | None = None,
    ) -> Opened:
        """Open an item; see `ItemReader.open`."""
        return self._readers[modality].open(source, where, sampler=sampler, facts=facts, salt=salt)

    def load(self, opened: Opened, plan: ItemPlan | None = None, planner: Planner | None = None) -> Media:
        """Load an item by its plan, or as `planner` plans it; without either as it is. See `ItemReader.load`."""
        planner = planner or as_it_is
        return self._readers[opened.modality].load(opened, plan or planner(opened), planner)

    def close(self) -> None:
        """End the decoder processes."""
        self._decoding.pool.close()


def as_it_is(opened: Opened) -> ItemPlan:
    """A plan that changes no pixel and counts no token."""
    num_frames, size = opened.size[0], opened.size[1:]
    plan = ItemPlan(opened.modality, size, size, size, 0, 0, num_frames)
    return with_sample(plan, opened)


def with_sample(plan: ItemPlan, opened: Opened) -> ItemPlan:
    """`plan` with the frames that were chosen when the item was opened."""
    if not isinstance(opened, OpenedVideo):
        return plan
    return plan.of_clip(opened.sample.indices.tolist(), opened.header.num_frames, opened.sample.fps)
