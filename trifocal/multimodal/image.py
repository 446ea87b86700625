"""Pictures from bytes or from Python objects: header first (`open_image`), pixels when asked (`load_image`).

Bytes of strangers come here in a decoder process only (`decoder.py`); the server's own process opens objects.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.multimodal.media import Image
from trifocal.types import Modality

# What browsers and cameras write, told by content. Not in it: EPS and the like, whose decoding starts other programs.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000")
_ORIENTATION = 0x0112
_STRIP_BYTES = 16 << 20
_T = PIL.Image.Transpose
_TURNS = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A picture whose header is read: `height` and `width` as displayed. `where` names it in errors.

    `source` is its file's bytes while it is to be decoded elsewhere, `name` what a cache knows them by.
    """

    source: PIL.Image.Image | bytes
    height: int
    width: int
    where: str
    name: bytes = b""
    modality: Modality = "image"

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return 1, self.height, self.width


TargetSize = Callable[[int, int, int], tuple[int, int]]
"""(frames, height, width) -> the (height, width) that the processor is going to make of each frame."""


def scaled(picture: PIL.Image.Image, num_frames: int, target: TargetSize | None) -> PIL.Image.Image:
    """`picture` at its target size: antialiased bicubic, as the processors would do it later."""
    height, width = (picture.height, picture.width)
    if target is not None:
        height, width = target(num_frames, height, width)
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), PIL.Image.Resampling.BICUBIC)


def as_array(picture: PIL.Image.Image) -> NDArray[np.uint8]:
    """Pixels of an RGB picture, [height, width, 3]. In strips: what PIL does at once takes their memory twice."""
    height, width = picture.height, picture.width
    num_rows = max(_STRIP_BYTES // (3 * width), 1)
    if num_rows >= height:
        return np.asarray(picture)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, num_rows):
        strip = picture.crop((0, top, width, min(top + num_rows, height)))
        pixels[top : top + num_rows] = np.asarray(strip)
    return pixels


def refusal(where: str, message: str) -> RequestError:
    """A media item that cannot be used."""
    return RequestError(f"{where}: {message}", param="messages")


def check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    """Raise `RequestError` for a size of zero or of more than `max_pixels`."""
    if height < 1 or width < 1:
        raise refusal(where, f"the size is {width}x{height}")
    if height * width > max_pixels:
        raise _too_large(f"{width}x{height} is", where, max_pixels)


def open_bytes(data: bytes, where: str, max_pixels: int) -> PIL.Image.Image:
    """The header of a picture file, known by its content whatever its name. Raises `RequestError`.

    Some files hold others, of other sizes than their header says: those are refused by PIL's own limit.
    """
    PIL.Image.MAX_IMAGE_PIXELS = max(max_pixels // 2, 1)  # PIL refuses twice as many
    if not data:
        raise refusal(where, "the image is empty")
    try:
        return PIL.Image.open(io.BytesIO(data), formats=_known_formats())
    except PIL.Image.DecompressionBombError:
        raise _too_large("the image has", where, max_pixels) from None
    except PIL.UnidentifiedImageError:
        raise refusal(where, "this is not an image that can be read (JPEG, PNG, WebP, GIF, …)") from None
    except Exception as error:  # decoders of broken files fail in every way there is
        raise refusal(where, f"the image cannot be read: {error}") from None


def _too_large(what: str, where: str, max_pixels: int) -> RequestError:
    return refusal(where, f"{what} more than {max_pixels / 1e6:g} megapixels (--max-image-pixels)")


@cache
def _known_formats() -> list[str]:
    PIL.Image.init()
    return [name for name in _FORMATS if name in PIL.Image.OPEN]  # a build of PIL may lack AVIF or JPEG 2000


def open_image(source: PIL.Image.Image | bytes, where: str, max_pixels: int) -> OpenedImage:
    """Open bytes or a PIL image. Raises `RequestError`."""
    picture = open_bytes(source, where, max_pixels) if isinstance(source, bytes) else source
    height, width = picture.height, picture.width
    check_size(height, width, where, max_pixels)
    # PNG may keep its EXIF behind the pixels: asking would decode them here. Its size is right either way up to a swap.
    if picture.format != "PNG" and _orientation(picture) >= 5:
        height, width = width, height
    return OpenedImage(picture, height, width, where)


def load_image(opened: OpenedImage, target: TargetSize | None = None) -> Image:
    """Decode: first frame, upright, transparency on white, 8 bits a channel. Raises `RequestError`.

    With `target` it is scaled at once, so that many large pictures never lie in memory at full size together.
    """
    assert isinstance(opened.source, PIL.Image.Image)
    try:
        return Image(as_array(scaled(to_rgb(opened.source), 1, target)))
    except RequestError as error:
        raise refusal(opened.where, error.message) from None
    except MemoryError:  # not the file's fault alone: the decoder process says what is
        raise
    except Exception as error:  # as in open_bytes
        raise refusal(opened.where, f"the image is broken or cut off: {error}") from None


def to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """An upright RGB picture, transparent parts on white."""
    if picture.mode.startswith(("I", "F")):
        picture.load()
        upright = _upright(_to_8_bits(picture), _orientation(picture))
        return upright.convert("RGB")
    orientation = _orientation(picture)
    picture.load()
    picture = _upright(picture, orientation)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        white = PIL.Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _orientation(picture: PIL.Image.Image) -> int:
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data is no reason to refuse a picture: browsers show it, too
        return 1
    return value if isinstance(value, int) else 1


def _upright(picture: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _to_8_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Grey pictures of 16 bits (`I;16…`, `I`) by value / 257; of floats (`F`) by clipping to 0 .. 255.

    PIL's own conversion clips 16 bits at 255, which makes nearly every picture white.
    """
    values = np.asarray(picture)
    if picture.mode == "F":
        grey = np.nan_to_num(values).clip(0, 255)
    elif picture.mode == "I" and values.size and values.max() <= 255:
        grey = values.clip(0, 255)
    else:
        grey = (values.clip(0, 65535).astype(np.uint32) + 128) // 257
    return PIL.Image.fromarray(grey.astype(np.uint8))
