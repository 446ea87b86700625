"""`Decoding`: what the readers of all modalities share, and `ItemReader`, the contract of one of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from trifocal.errors import RequestError
from trifocal.helpers.pool import HelperDiedError, HelperPool, HelperSlowError, HelperStartError
from trifocal.media.cache import MediaCache
from trifocal.media.decode import jobs
from trifocal.media.decode.helper import DecoderHelper
from trifocal.media.decode.image import OpenedImage, refusal
from trifocal.media.decode.video import FrameFacts, OpenedVideo, Sampler
from trifocal.media.limits import MediaLimits
from trifocal.media.media import Media
from trifocal.media.modalities import MODALITIES
from trifocal.media.plan import ItemPlan
from trifocal.types import Modality

T = TypeVar("T")
H = TypeVar("H", jobs.ImageHeader, jobs.VideoHeader)
M = TypeVar("M", bound=Media)
Opened = OpenedImage | OpenedVideo
Planner = Callable[[Opened], ItemPlan]


class Decoding:
    """Decoder processes, what was decoded before, and the limits. Safe to use from several threads; blocks.

    `cache` holds headers by the name of a file, and decoded items by its name and their plan.
    """

    def __init__(self, limits: MediaLimits, num_decoders: int, cache: MediaCache) -> None:
        self.limits = limits
        self.cache = cache
        self.pool = HelperPool(
            lambda: DecoderHelper(limits.decode_memory_bytes), name="decoder", size=num_decoders, tries=2
        )

    def file(self, modality: Modality, data: bytes, where: str) -> jobs.File:
        """A file as jobs name it."""
        return jobs.File(where, len(data), self.limits.max_image_pixels, self.limits.timeout(modality))

    def header(self, modality: Modality, name: bytes, job: jobs.Job, data: bytes, kind: type[H]) -> H:
        """The header of a file, which `job` asks for and a message of `kind` answers."""
        found = self.cache.get((name, kind), kind)
        if found is None:

            def ask(decoder: DecoderHelper) -> H:
                decoder.ask(job, data)
                answer = decoder.answer(kind)
                decoder.done()
                return answer

            found = self.run(modality, job.file.where, ask)
            self.keep_header(name, found)
        return found

    def keep_header(self, name: bytes, header: jobs.ImageHeader | jobs.VideoHeader) -> None:
        """From now on this is the header of the file."""
        num_bytes = len(header.index) if isinstance(header, jobs.VideoHeader) else 0
        self.cache.add((name, type(header)), header, num_bytes)

    def keep(self, name: bytes, item: M) -> M:
        """Keep a decoded item, which must not change any more, for requests with the same file and plan."""
        item.pixels.setflags(write=False)
        self.cache.add((name, item.plan), item, item.pixels.nbytes)
        return item

    def run(self, modality: Modality, where: str, work: Callable[[DecoderHelper], T]) -> T:
        """Do `work` with a decoder. Raises `RequestError` that names the item by `where`."""
        try:
            return self.pool.run(work)
        except HelperDiedError as error:
            raise refusal(where, f"the {modality} made the decoder process fail ({error})") from None
        except HelperSlowError:
            raise self._too_slow(modality, where) from None
        except HelperStartError:
            message = "media cannot be decoded at the moment, as no decoder process can be started"
            raise RequestError(message, status=503, code="decoder_unavailable") from None

    def clock(self, modality: Modality, where: str) -> Callable[[], None]:
        """A check to make between the jobs of one item: raises once they take longer than one job may."""
        end = time.monotonic() + self.limits.timeout(modality)

        def check() -> None:
            if time.monotonic() > end:
                raise self._too_slow(modality, where)

        return check

    def _too_slow(self, modality: Modality, where: str) -> RequestError:
        seconds, flag = self.limits.timeout(modality), MODALITIES[modality].decode_timeout.replace("_", "-")
        return refusal(where, f"decoding the {modality} took more than {seconds:g} s (--{flag})")


class ItemReader(ABC):
    """Opens items of one modality (header only) and loads them (pixels). Safe to use from several threads; blocks.

    Everything raises `RequestError` that names the item by `where`.
    """

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding

    @staticmethod
    @abstractmethod
    def items_of(value: Any) -> list[Any]:
        """What `multi_modal_data` has under the modality's name, as a list of items."""

    @abstractmethod
    def open(self, source: Any, where: str, *, sampler: Sampler, facts: FrameFacts | None, salt: str | None) -> Opened:
        """Read what is needed for a plan. `sampler` chooses frames; `facts` are for clips that come as frames."""

    @abstractmethod
    def load(self, opened: Opened, plan: ItemPlan, planner: Planner) -> Media:
        """The pixels, decoded to `plan.decoded`. `planner` makes a plan anew if they turn out to be of another size."""
