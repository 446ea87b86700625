"""Arrays and tensors as pixels: uint8 of 0 .. 255 or floats of 0 .. 1, channels last or first."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trifocal.media.decode.image import check_size, refusal

_ROUNDING = 1e-3  # resizing and half precision may leave 0 .. 1 by so much
_MAX_SHOWN = 128


def is_array(value: Any) -> TypeGuard[Any]:
    """Whether `value` is a numpy array or something that becomes one, like a tensor; a PIL image is none."""
    return not isinstance(value, PIL.Image.Image) and (isinstance(value, np.ndarray) or hasattr(value, "__array__"))


def num_axes(value: Any) -> int:
    """Axes of an array or tensor, 0 if it cannot tell, -1 for anything else."""
    try:
        return len(np.shape(value)) if is_array(value) else -1
    except Exception:  # `_numpy` says what is wrong with it
        return 0


def picture_of(array: Any, where: str, max_pixels: int) -> PIL.Image.Image:
    """[height, width, channels], [channels, height, width] or [height, width] as a PIL image. Raises `RequestError`.

    Channels are 3, 1 (grey) or, last only, 4 (RGBA). What can be read either way has its channels last.
    """
    pixels = _numpy(array, where)
    axis = _channel_axis(pixels.shape) if pixels.ndim == 3 else None
    if pixels.ndim != 2 and axis is None:
        raise refusal(
            where,
            f"an image array must be [height, width, 3] or [3, height, width], got {list(pixels.shape)}",
        )
    if axis is not None:
        pixels = np.moveaxis(pixels, axis, -1)
    check_size(pixels.shape[0], pixels.shape[1], where, max_pixels)
    return pil_picture(_as_uint8(pixels, where))


def frames_of(array: Any, where: str, max_pixels: int) -> NDArray[np.uint8]:
    """[frames, height, width, channels] or [frames, channels, height, width] with the channels last, as uint8.

    Channels are as those of `picture_of`, `max_pixels` those of one frame. Raises `RequestError`.
    """
    frames = _numpy(array, where)
    axis = _channel_axis(frames.shape[1:]) if frames.ndim == 4 and len(frames) else None
    if axis is None:
        raise refusal(
            where,
            f"a video array must be [frames, height, width, 3] or [frames, 3, height, width], got {list(frames.shape)}",
        )
    frames = np.moveaxis(frames, axis + 1, -1)
    check_size(frames.shape[1], frames.shape[2], where, max_pixels)
    if frames.dtype == np.uint8:
        return frames
    return np.stack([_as_uint8(frame, f"{where}: frame {index}") for index, frame in enumerate(frames)])


def pil_picture(pixels: NDArray[np.uint8]) -> PIL.Image.Image:
    """uint8 [height, width] or [height, width, 1, 3 or 4] as a PIL image."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return PIL.Image.fromarray(np.ascontiguousarray(pixels))


def _numpy(source: Any, where: str) -> NDArray[Any]:
    """A tensor may be on a device or of a type that numpy lacks; some kinds (meta, 8 bits) cannot be read at all."""
    try:
        if hasattr(source, "detach"):
            source = source.detach().cpu()
            if str(source.dtype) == "torch.bfloat16":
                source = source.float()
        return np.asarray(source)
    except Exception as error:  # other people's objects fail in every way there is
        raise refusal(where, f"numpy cannot read this array or tensor: {str(error)[:_MAX_SHOWN]}") from None


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Which axis of a picture's three has the channels."""
    if shape[2] in (3, 4):
        return 2
    if shape[0] == 3:
        return 0
    return 2 if shape[2] == 1 else 0 if shape[0] == 1 else None


def _as_uint8(pixels: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise refusal(where, f"an array or tensor must be uint8 (0 .. 255) or float (0 .. 1), got {pixels.dtype}")
    if pixels.size == 0:
        return pixels.astype(np.uint8)
    least, most = float(pixels.min()), float(pixels.max())
    if np.isnan(least) or np.isnan(most):
        raise refusal(where, "the array or tensor has NaN in it")
    if least < -_ROUNDING or most > 1 + _ROUNDING:
        raise refusal(
            where,
            f"a float array or tensor must lie within 0 .. 1, got {least:g} .. {most:g}; values of 0 .. 255 must be "
            "uint8",
        )
    return (pixels.astype(np.float32).clip(0, 1) * 255 + 0.5).astype(np.uint8)
