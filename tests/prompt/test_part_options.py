"""What a part may say of its item: beside the URL or with it, checked by name, kind and modality."""

from __future__ import annotations

from typing import Any

import pytest

from trifocal.errors import RequestError
from trifocal.prompt.part_options import MOST_NUMBER, part_options


def of(part: dict[str, Any], field: str = "video_url") -> dict[str, Any]:
    return part_options(part, field, "image" if field == "image_url" else "video", "m[0]")


def test_beside_and_inside() -> None:
    inside = {"url": "u", "detail": "high", "max_pixels": 9, "fps": 0.5, "cache_control": {}}
    assert of({"type": "video_url", "video_url": inside, "nframes": 4, "fps": None}) == {
        "max_pixels": 9, "fps": 0.5, "num_frames": 4,
    }  # fmt: skip
    assert of({"video_url": "u", "fps": 2, "do_sample_frames": True}) == {"fps": 2, "do_sample_frames": True}
    assert of({"image_url": {"url": "u"}, "resized_height": 56, "resized_width": 84}, "image_url") == {
        "resized_height": 56, "resized_width": 84,
    }  # fmt: skip
    assert of({"video_url": {"url": "u", "fps": 2}, "fps": 2.0}) == {"fps": 2}  # twice the same
    whole = of({"video_url": "u", "max_pixels": 9.0, "nframes": 4.0})
    assert [type(value) for value in whole.values()] == [int, int]


@pytest.mark.parametrize(
    ("part", "path", "message"),
    [
        ({"max_pixels": 0}, "max_pixels", "must be an integer of at least 1, got 0"),
        ({"max_pixels": "9"}, "max_pixels", "got '9'"),
        ({"min_pixels": True}, "min_pixels", "an integer"),
        ({"nframes": 2.5}, "nframes", "an integer"),
        ({"max_pixels": 10**400}, "max_pixels", "an integer"),
        ({"fps": MOST_NUMBER + 1}, "fps", "a positive number"),
        ({"fps": float("nan")}, "fps", "a positive number"),
        ({"fps": [2.0]}, "fps", "a positive number"),
        ({"do_sample_frames": 1}, "do_sample_frames", "true or false"),
        ({"video_url": {"url": "u", "fps": -1}}, "video_url.fps", "a positive number"),
        ({"video_url": {"url": "u", "fps": 1}, "fps": 2}, "video_url.fps", "given twice for this part: 2 and 1"),
        ({"nframes": 4, "num_frames": 6}, "num_frames", "given twice"),
        ({"video_start": 1.0}, "video_start", "is not available"),
        ({"use_image_id": False}, "use_image_id", "put it into mm_processor_kwargs"),
        ({"max_dynamic_patch": 2}, "max_dynamic_patch", "is an option of pictures, but this part is a clip"),
    ],
)
def test_bad_ones_are_named_with_their_path(part: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        of({"video_url": "u", **part})
    assert caught.value.param == f"m[0].{path}" and caught.value.message.startswith(f"m[0].{path} ")
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", ["fps", "nframes", "num_frames", "min_frames", "max_frames", "total_pixels"])
def test_pictures_have_no_frames(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is an option of clips, but this part is a picture"):
        of({"image_url": "u", name: 4}, "image_url")
