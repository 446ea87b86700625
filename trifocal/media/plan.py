"""What becomes of a picture or clip, worked out once: `ItemPlan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trifocal.types import Modality

Size = tuple[int, int]
"""(height, width) in pixels, as displayed; of a clip that of each frame."""


@dataclass(frozen=True, slots=True)
class ItemPlan:
    """What a family's processor does to one item, known from its header and its options before any pixel is read.

    Everything that needs a size reads it here: the limits, the decoder's job, the key of the decode cache, the tokens,
    the tiles. It is plain data, so that it can be sent, kept and shown.
    """

    modality: Modality
    size: Size  # of the item as it came
    decoded: Size  # what it is scaled to while it is decoded; `size` where the original pixels are needed afterwards
    resized: Size  # what is cut into tiles and patches
    num_tokens: int  # positions in the prompt, with marks and names of frames, without the number of a picture
    num_embeds: int  # embeddings of the vision tower among them
    num_frames: int = 1  # that are used
    tiles: tuple[int, int] = (1, 1)  # rows and columns that each frame is cut into
    overview: Size | None = None  # of one more, smaller copy of the whole beside the tiles
    frames: tuple[int, ...] = ()  # which frames of the clip these are, rising; empty for a picture
    total_frames: int = 1  # that the clip has
    fps: float = 0.0  # used frames a second of the clip; 0 for a picture

    @property
    def num_tiles(self) -> int:
        """Tiles of each frame, without the overview."""
        return self.tiles[0] * self.tiles[1]

    def of_clip(self, frames: Iterable[int], total_frames: int, fps: float) -> ItemPlan:
        """This plan with the frames that were chosen of a clip's `total_frames`, `fps` of them a second."""
        return replace(self, frames=tuple(frames), total_frames=total_frames, fps=fps)

    def of_frame(self) -> ItemPlan:
        """What is done to one frame of a clip whose frames are pictures."""
        return ItemPlan("image", self.size, self.decoded, self.resized, num_tokens=0, num_embeds=0)
