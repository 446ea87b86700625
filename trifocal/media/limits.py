"""How much the media of a request may be: pixels, frames, and what decoding them may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trifocal.config.media import MediaSizeArgs
from trifocal.errors import RequestError
from trifocal.media.modalities import MODALITIES
from trifocal.media.plan import ItemPlan
from trifocal.types import Modality

MAX_DECODED_BYTES = 2 << 30  # of all pictures and frames of one request, scaled as the model's family wants them


class TooManyFramesError(RequestError):
    """More frames of a clip are chosen than allowed."""


@dataclass(frozen=True, kw_only=True)
class MediaLimits(MediaSizeArgs):
    """The limits in force. Each field is the flag of its name."""

    def timeout(self, modality: Modality) -> float:
        """Seconds for one job of a decoder process."""
        return float(getattr(self, MODALITIES[modality].decode_timeout))

    def check_frames(self, num_frames: int, where: str) -> None:
        """Raise `TooManyFramesError` if too many frames of a clip are chosen."""
        if num_frames > self.max_video_frames:
            raise TooManyFramesError(
                f"{where}: {num_frames} frames are chosen, but at most {self.max_video_frames} are allowed "
                "(--max-video-frames)",
                param="messages",
            )

    def check_request(self, plans: Sequence[ItemPlan]) -> None:
        """Raise `RequestError` if all items of a request are too much together.

        Counted are the sizes that their headers announce, which is what decoding costs, and those in memory.
        """
        num_pixels = sum(plan.num_frames * plan.size[0] * plan.size[1] for plan in plans)
        if num_pixels > self.max_request_pixels:
            raise RequestError(
                f"the pictures and chosen frames of one request are {num_pixels / 1e6:.10g} megapixels, but at "
                f"most {self.max_request_pixels / 1e6:.10g} are allowed (--max-request-pixels)",
                param="messages",
            )
        num_bytes = sum(plan.num_frames * plan.decoded[0] * plan.decoded[1] * 3 for plan in plans)
        if num_bytes > MAX_DECODED_BYTES:
            raise RequestError(
                f"the pictures and chosen frames of one request take {-(-num_bytes >> 20)} MiB when decoded, but at "
                f"most {MAX_DECODED_BYTES >> 20} are allowed; send fewer or smaller ones, or choose fewer frames by "
                "fps or num_frames",
                param="messages",
            )
