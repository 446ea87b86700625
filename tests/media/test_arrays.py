"""Arrays and tensors of every layout and type that people pass become the same pixels; others are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.media.samples import noise
from trifocal.errors import RequestError
from trifocal.media.arrays import frames_of, is_array, num_axes, picture_of

PIXELS = noise(5, 7)
CLIP = np.stack([noise(5, 7, seed=k) for k in range(4)])
LIMIT = 1000


def picture(array: Any) -> np.ndarray:
    return np.asarray(picture_of(array, "here", LIMIT))


def tensors(array: np.ndarray, first: int) -> list[Any]:
    """The same pixels as people write them, channels at axis `first` or last."""
    moved = np.moveaxis(array, -1, first)
    floats = array.astype(np.float32) / 255
    return [
        array, moved, array.astype(np.float64) / 255, floats, np.moveaxis(floats, -1, first),
        torch.from_numpy(array), torch.from_numpy(moved.copy()), torch.from_numpy(floats),
        torch.from_numpy(np.moveaxis(floats, -1, first)).requires_grad_(),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", range(9))
def test_layouts_and_types(kind: int) -> None:
    np.testing.assert_array_equal(picture(tensors(PIXELS, 0)[kind]), PIXELS)
    np.testing.assert_array_equal(frames_of(tensors(CLIP, 1)[kind], "here", LIMIT), CLIP)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    halves = torch.from_numpy(CLIP).to(dtype) / 255
    assert np.abs(frames_of(halves, "here", LIMIT).astype(int) - CLIP).max() <= 1


def test_grey_and_transparent() -> None:
    grey = PIXELS[..., 0]
    for array in (grey, grey[..., None], grey[None], grey.astype(np.float32) / 255):
        np.testing.assert_array_equal(picture(array), grey)
    assert picture(noise(5, 7, 4)).shape == (5, 7, 4)
    assert frames_of(CLIP[..., :1], "here", LIMIT).shape == (4, 5, 7, 1)
    assert frames_of(np.moveaxis(CLIP, -1, 1)[:, :1], "here", LIMIT).shape == (4, 5, 7, 1)


def test_what_can_be_read_either_way_has_its_channels_last() -> None:
    assert picture(noise(3, 9)).shape == (3, 9, 3)
    assert frames_of(np.zeros((2, 3, 9, 3), np.uint8), "here", LIMIT).shape == (2, 3, 9, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.full((5, 7, 3), 255.0, np.float32),
            r"got 255 \.\. 255; values of 0 \.\. 255 must be uint8",
        ),
        (np.full((5, 7, 3), -0.5), r"within 0 \.\. 1, got -0.5"),
        (np.full((5, 7, 3), np.nan), "NaN"),
        (np.full((5, 7, 3), np.inf), r"within 0 \.\. 1, got inf"),
        (np.zeros((5, 7, 3), np.int64), "got int64"),
        (np.zeros((5, 7, 3), bool), "got bool"),
        (np.zeros((5, 7, 2), np.uint8), r"\[5, 7, 2\]"),
        (np.zeros((1, 5, 7, 3), np.uint8), r"\[1, 5, 7, 3\]"),
        (np.zeros((40, 40, 3), np.uint8), "--max-image-pixels"),
        (np.zeros((0, 7, 3), np.uint8), "7x0"),
    ],
)
def test_what_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=f"^here: .*{message}"):
        picture(array)
    if array.ndim == 3:
        with pytest.raises(RequestError, match=rf"^here(: frame 0)?: .*{message.replace('[', '[2, ', 1)}"):
            frames_of(np.stack([array, array]), "here", LIMIT)
    with pytest.raises(RequestError, match=r"\[frames, height, width, 3\]"):
        frames_of(np.zeros((0, 5, 7, 3), np.uint8), "here", LIMIT)


def test_a_bad_frame_is_named() -> None:
    floats = CLIP.astype(np.float32) / 255
    floats[2, 1, 1, 0] = np.nan
    with pytest.raises(RequestError, match="^here: frame 2: .*NaN"):
        frames_of(floats, "here", LIMIT)


def test_objects_that_numpy_cannot_read() -> None:
    """A sentence, not the error of whoever made the object; they count as frames until they are read."""

    class Broken:
        def __array__(self, *_: Any) -> np.ndarray:
            raise ValueError("no pixels today")

    without_pixels = torch.empty(5, 7, 3, device="meta")
    for wrong in (without_pixels, torch.ones(5, 7, 3).to(torch.float8_e4m3fn), Broken()):
        for read in (picture_of, frames_of):
            with pytest.raises(RequestError, match="^here: numpy cannot read this array or tensor: "):
                read(wrong, "here", LIMIT)
    assert [num_axes(without_pixels), num_axes(Broken())] == [3, 0]


def test_rounding_errors_are_no_errors() -> None:
    assert picture(np.full((2, 2, 3), 1.0004, np.float32)).max() == 255
    assert picture(np.full((2, 2, 3), -0.0004, np.float32)).max() == 0


def test_what_is_an_array() -> None:
    from PIL import Image

    assert [num_axes(value) for value in (CLIP, torch.from_numpy(PIXELS), [PIXELS], "a", Image.new("L", (1, 1)))] == [
        4, 3, -1, -1, -1,
    ]  # fmt: skip
    assert is_array(torch.zeros(1)) and not is_array(Image.new("L", (1, 1)))
