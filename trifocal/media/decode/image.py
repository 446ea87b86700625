"""Pictures from bytes or from Python objects: header first (`open_image`), pixels when asked (`load_image`).

Bytes of strangers come here in a decoder process only (`process.py`); the server's own process opens objects.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
import PIL.ImageFile
from numpy.typing import NDArray

from trifocal.errors import RequestError
from trifocal.media.decode import heif
from trifocal.media.decode.mending import ended_jpegs, mended_png
from trifocal.media.media import Image
from trifocal.media.plan import ItemPlan, Size
from trifocal.types import Modality

# What browsers and cameras write, told by content. Not in it: EPS and the like, whose decoding starts other programs.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000")
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
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


class OtherSizeError(Exception):
    """The pixels are of another size, `height` and `width`, than the one that the plan was made for."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(f"{width}x{height}")
        self.height, self.width = height, width


def scaled(picture: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    """`picture` at `size`: antialiased bicubic, as the processors would do it later."""
    height, width = size
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
        raise refusal(where, f"the size must be at least 1x1, got {width}x{height}")
    if height * width > max_pixels:
        raise _too_large(f"{width}x{height} is", where, max_pixels)


def open_bytes(data: bytes, where: str, max_pixels: int, *, is_clip: bool = False) -> PIL.Image.Image:
    """The header of a picture file, known by its content whatever its name. Raises `RequestError`.

    Some files hold others, of other sizes than their header says: those are refused by PIL's own limit. Of an animated
    PNG that `is_clip` all frames can be read, else the first.
    """
    PIL.Image.MAX_IMAGE_PIXELS = max(max_pixels // 2, 1)  # PIL refuses twice as many
    if not data:
        raise refusal(where, "the image is empty")
    formats = _known_formats()
    if heif.is_heif(data):
        missing = heif.why_not()
        if missing is not None:
            raise refusal(where, missing)
        formats = ["HEIF"]
    try:
        return PIL.Image.open(io.BytesIO(mended_png(data, is_clip=is_clip)), formats=formats)
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
    if _is_still_to_turn(picture):
        height, width = width, height
    return OpenedImage(picture, height, width, where)


def _is_still_to_turn(picture: PIL.Image.Image) -> bool:
    """Whether the size that PIL tells will be swapped. False if only decoding could tell: it is right up to a swap."""
    if picture.format == "TIFF":  # PIL has swapped it already
        return False
    if picture.format == "PNG" and "exif" not in picture.info:  # PIL would decode it, to look behind the pixels as well
        return False
    return orientation_of(picture) >= 5


def load_image(opened: OpenedImage, plan: ItemPlan | None = None) -> Image:
    """Decode: first frame, upright, transparency on white, 8 bits a channel. Raises `RequestError`.

    With a `plan` it is scaled at once, so that many large pictures never lie in memory at full size together. Raises
    `OtherSizeError` if the plan is for another size.
    """
    assert isinstance(opened.source, PIL.Image.Image)
    try:
        picture = to_rgb(opened.source)
        if plan is None:
            return Image(as_array(picture))
        if (picture.height, picture.width) != plan.size:
            raise OtherSizeError(picture.height, picture.width)
        return Image(as_array(scaled(picture, plan.decoded)), plan)
    except OtherSizeError:
        raise
    except RequestError as error:
        raise refusal(opened.where, error.message) from None
    except MemoryError:  # not the file's fault alone: the decoder process says what is
        raise
    except Exception as error:  # as in open_bytes
        raise refusal(opened.where, f"the image is broken or cut off: {error}") from None


def to_rgb(picture: PIL.Image.Image, orientation: int | None = None) -> PIL.Image.Image:
    """An upright RGB picture, transparent parts on white. `orientation` (EXIF's, 1 to 8) is the picture's own if None.

    Who turns is not the same for all formats: PIL turns a TIFF while it loads it and forgets the tag, libheif a HEIC.
    So the tag is read after that, when it tells what is left to do.
    """
    picture = _loaded(picture)
    if orientation is None:
        orientation = orientation_of(picture)
    if picture.mode.startswith(("I", "F")):
        return upright(_to_8_bits(picture), orientation).convert("RGB")
    picture = upright(picture, orientation)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        white = PIL.Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _loaded(picture: PIL.Image.Image) -> PIL.Image.Image:
    """`picture` with its pixels; a JPEG file without its end marker, too, if these are whole."""
    try:
        if picture.format == "TIFF" and isinstance(picture, PIL.ImageFile.ImageFile):
            _load_tiff(picture)
        else:
            picture.load()
    except OSError:
        file = getattr(picture, "fp", None)
        if picture.format != "JPEG" or not isinstance(file, io.BytesIO):
            raise
        data = file.getvalue()
        if len({_digest(_decoded_jpeg(ended)) for ended in ended_jpegs(data)}) != 1:
            raise
        return _decoded_jpeg(next(ended_jpegs(data)))
    return picture


def _load_tiff(picture: PIL.ImageFile.ImageFile) -> None:
    """Load without PIL's memory mapping: it reads plain pixels of a named file by the size that they are turned to."""
    name, picture.filename = picture.filename, ""
    try:
        picture.load()
    finally:
        picture.filename = name


def _decoded_jpeg(data: bytes) -> PIL.Image.Image:
    picture = PIL.Image.open(io.BytesIO(data), formats=["JPEG"])
    picture.load()
    return picture


def _digest(picture: PIL.Image.Image) -> bytes:
    """In strips, as in `as_array`."""
    digest = hashlib.blake2b()
    num_rows = max(_STRIP_BYTES // (4 * picture.width), 1)
    for top in range(0, picture.height, num_rows):
        digest.update(picture.crop((0, top, picture.width, min(top + num_rows, picture.height))).tobytes())
    return digest.digest()


def orientation_of(picture: PIL.Image.Image) -> int:
    """The orientation that EXIF, or else XMP, asks for: 1 to 8, 1 where neither does."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data is no reason to refuse a picture: browsers show it, too
        return 1
    return value if isinstance(value, int) else 1


def upright(picture: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """`picture`, whose pixels lie as EXIF's `orientation` says, as it is to be seen."""
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _to_8_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Grey pictures of 16 bits (`I;16…`, `I`) by value / 257; of floats (`F`) by clipping to 0 .. 255.

    PIL's own conversion clips 16 bits at 255, which makes nearly every picture white. What a TIFF declares to be of 12
    bits is scaled by these; 12 bits in a file that says 16 cannot be told from a dark picture.
    """
    values = np.asarray(picture)
    if getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,):
        values = values << 4 | values >> 8
    if picture.mode == "F":
        grey = np.nan_to_num(values).clip(0, 255)
    elif picture.mode == "I" and values.size and values.max() <= 255:
        grey = values.clip(0, 255)
    else:
        grey = (values.clip(0, 65535).astype(np.uint32) + 128) // 257
    return PIL.Image.fromarray(grey.astype(np.uint8))
