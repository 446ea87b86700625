"""Which of five layers rules, and what vLLM's media_io_kwargs mean for files and for frames."""

from __future__ import annotations

from typing import Any

import pytest

from trifocal.errors import RequestError
from trifocal.prompt.item_options import ItemOptions, check_list, reading_layer, seen_by_processor

Layer = dict[str, Any]


def layered(
    server: Layer | None = None, server_io: Layer | None = None, request: Layer | None = None,
    request_io: Layer | None = None, part: Layer | None = None, index: int = 0,
) -> ItemOptions:  # fmt: skip
    options = ItemOptions()
    for processor, reading in ((server, server_io), (request, request_io)):
        options = options.overlaid(processor or {}).overlaid(reading or {}, is_own=True, is_capped=True)
    return options.of_item(part or {}, index)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({}, {}),
        ({"server": {"max_pixels": 1}, "request": {"max_pixels": 2}, "part": {"max_pixels": 3}}, {"max_pixels": 3}),
        ({"server": {"fps": 1}, "part": {"max_pixels": 3}}, {"fps": 1, "max_pixels": 3}),
        ({"server": {"fps": 1}, "server_io": {"num_frames": 8}}, {"num_frames": 8}),
        ({"server_io": {"num_frames": 8}, "request": {"fps": 1}}, {"fps": 1}),
        ({"request": {"fps": 1}, "request_io": {"num_frames": 8}, "part": {"fps": 4}}, {"fps": 4}),
        ({"server": {"num_frames": 8}, "request": {"num_frames": None}}, {}),
        ({"server": {"fps": 1, "max_pixels": 4}, "request": {"fps": None, "max_pixels": None}}, {}),
        ({"request": {"num_frames": 8, "fps": 1}}, {"num_frames": 8, "fps": 1}),  # the family says which rules
        ({"request": {"do_sample_frames": False, "fps": 1}}, {"fps": 1}),
        # vLLM's reading: two limits, of which the lower holds; -1 is all.
        ({"request_io": {"num_frames": 8, "fps": 2.0}}, {"num_frames": 8}),
        ({"request_io": {"num_frames": 50, "fps": 2.0}}, {"num_frames": 20}),
        ({"request_io": {"num_frames": -1, "fps": 2.0}}, {"num_frames": 20}),
        ({"request_io": {"num_frames": 8, "fps": 0.01}}, {"num_frames": 1}),
        ({"request_io": {"num_frames": -1}}, {"num_frames": 100}),
        ({"request_io": {"num_frames": 400}}, {"num_frames": 100}),
        ({"server_io": {"num_frames": -1}, "part": {"num_frames": 4}}, {"num_frames": 4}),
    ],
)
def test_files(layers: Layer, expected: Layer) -> None:
    assert layered(**layers).for_file(100, 10.0) == expected  # ten seconds


@pytest.mark.parametrize(
    ("layers", "options", "fps", "num_frames", "rate"),
    [
        ({}, {}, 2.0, None, None),
        ({"request": {"fps": 4}}, {"fps": 4}, 4, None, None),  # theirs, or the wanted one where they are sampled
        ({"request_io": {"fps": 4}}, {}, 2.0, None, 4),
        ({"request_io": {"fps": 4}, "request": {"fps": 1}}, {"fps": 1}, 1, None, 4),
        ({"request": {"fps": 1}, "part": {"num_frames": 3}}, {"fps": 1, "num_frames": 3}, 1, 3, None),
        ({"part": {"fps": 4, "num_frames": 3}}, {"num_frames": 3}, 2.0, 3, 4),
        ({"request_io": {"num_frames": -1}}, {}, 2.0, None, None),
        ({"server": {"fps": 1, "size": {}}, "request": {"fps": None}}, {"size": {}}, 2.0, None, None),
    ],
)  # fmt: skip
def test_frames(layers: Layer, options: Layer, fps: float, num_frames: int | None, rate: float | None) -> None:
    made = layered(**layers)
    assert made.for_frames() == options
    assert (made.facts.fps, made.facts.num_frames, made.facts.metadata.get("fps")) == (fps, num_frames, rate)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({"server": {"fps": 1}, "server_io": {"num_frames": 8}, "request": {"max_pixels": 2}}, False),
        ({"request_io": {"num_frames": 8}}, True),
        ({"part": {"max_pixels": 8}}, True),
        ({"request_io": {"do_sample_frames": True}, "part": {}}, False),
    ],
)
def test_what_may_overrule_the_request(layers: Layer, expected: bool) -> None:
    """Where it does, no error may say that mm_processor_kwargs would help."""
    assert layered(**layers).overrules_request is expected


def test_metadata_of_frames() -> None:
    said = {"do_sample_frames": True, "total_num_frames": 9, "frames_indices": [0, 3], "fps": 30}
    made = layered(request_io=said, part={"do_sample_frames": False})
    assert made.facts.metadata == {**said, "do_sample_frames": False}
    assert made.processor == {}


def test_a_list_of_rates_is_one_for_each_clip() -> None:
    """qwen-vl-utils returns `fps` so."""
    rates = [layered(request={"fps": [1.0, 2.0]}, index=index).facts.fps for index in range(2)]
    assert rates == [1.0, 2.0]
    assert layered(request={"fps": [4.0]}, index=2).facts.fps == 4.0
    assert layered(request={"fps": [4.0]}, request_io={"num_frames": 3}).frames == {"num_frames": 3}
    assert layered(request={"fps": [1.0, 2.0]}, index=1).for_file(100, 10.0) == {"fps": 2.0}
    options = ItemOptions().overlaid({"fps": [1.0, 2.0]})
    check_list(options, 2)
    check_list(options, 0)
    with pytest.raises(RequestError, match="fps is a list of 2 numbers, but there are 3 clips"):
        check_list(options, 3)


def test_what_the_processor_sees() -> None:
    assert seen_by_processor({"fps": [2.0, 1.0], "do_sample_frames": False, "x": 1}) == {"fps": 2.0, "x": 1}
    for bad in ({"fps": []}, {"fps": [2.0, 0]}, {"fps": ["2"]}, {"do_sample_frames": "no"}):
        with pytest.raises(RequestError) as caught:
            seen_by_processor(bad)
        assert caught.value.param == "mm_processor_kwargs"


def test_neutral_reading() -> None:
    given = {
        "image": {"image_mode": "RGB", "rgba_background_color": [255, 255, 255]},
        "video": {"fps": -1, "num_frames": 4, "video_backend": "opencv", "frame_recovery": False, "max_duration": None},
    }
    assert reading_layer(given) == {"num_frames": 4}
    assert reading_layer({}) == reading_layer({"image": None, "video": None}) == {}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"audio": {}}, "'audio' is not a kind of media; known: image, video"),
        ({"video": 5}, "video must be an object, got 5"),
        ({"video": {"num_frames": 0}}, "video: num_frames must be an integer of at least 1, or -1 for all, got 0"),
        ({"video": {"num_frames": 2.5}}, "num_frames must be"),
        ({"video": {"fps": 0}}, "video: fps must be a positive number"),
        ({"video": {"fps": True}}, "video: fps must be a positive number"),
        ({"video": {"do_sample_frames": "yes"}}, "true or false"),
        ({"video": {"frames_indices": [1, "2"]}}, "a list of integers"),
        ({"video": {"video_backend": "torchcodec"}}, "video_backend must be opencv or pyav"),
        ({"video": {"max_duration": 9}}, "max_duration is not available"),
        ({"video": {"frames": 9}}, "video: 'frames' is not known; known: num_frames"),
        ({"image": {"image_mode": "L"}}, "image: image_mode must be RGB, got 'L'"),
        ({"image": {"rgba_background_color": [0, 0, 0]}}, "rgba_background_color must be"),
        ({"image": {"num_frames": 1}}, "image: 'num_frames' is not known; known: image_mode"),
    ],
)
def test_bad_reading(kwargs: Layer, message: str) -> None:
    with pytest.raises(RequestError, match=f"^media_io_kwargs: .*{message}") as caught:
        reading_layer(kwargs)
    assert caught.value.param == "media_io_kwargs"
