"""What is one item and what is several, by the axes of the elements; paths as text; no message contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from tests.media.samples import noise
from trifocal.errors import RequestError
from trifocal.media.given import as_url, images_of, videos_of, wrong_object

PICTURE = PIL.Image.fromarray(noise(5, 7))
FRAME, CLIP = noise(5, 7), np.stack([noise(5, 7)] * 3)
TENSOR = torch.from_numpy(CLIP)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (None, 0), ([], 0), (PICTURE, 1), (FRAME, 1), ([PICTURE, FRAME, "a.png"], 3), (CLIP, 3), (TENSOR, 3),
        ("a.png", 1), (b"file", 1), ((PICTURE, PICTURE), 2),
    ],
)  # fmt: skip
def test_pictures(value: Any, count: int) -> None:
    assert len(images_of(value)) == count


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (None, 0), ([], 0), (CLIP, 1), (TENSOR, 1), ("a.mp4", 1), (b"file", 1), (Path("a.mp4"), 1),
        ([PICTURE, PICTURE], 1), ([FRAME, FRAME, PICTURE], 1), ([TENSOR[0], FRAME], 1), ((PICTURE, PICTURE), 1),
        ((CLIP, {"fps": 2.0}), 1), (([PICTURE, PICTURE], {"fps": 2.0}), 1),
        ([CLIP, TENSOR], 2), ([[PICTURE], [FRAME, FRAME]], 2), (["a.mp4", b"file"], 2),
        ([(CLIP, {"fps": 2.0}), [PICTURE]], 2), (np.stack([CLIP, CLIP]), 2), (torch.stack([TENSOR, TENSOR]), 2),
    ],
)  # fmt: skip
def test_clips(value: Any, count: int) -> None:
    assert len(videos_of(value)) == count


def test_frames_and_clips_do_not_mix() -> None:
    with pytest.raises(RequestError, match="mixes frames"):
        videos_of([PICTURE, CLIP])


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a b#.png"
    file.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    url = file.as_uri()
    assert url.startswith("file:///") and "%20" in url
    assert as_url(str(file), "w") == as_url(file, "w") == as_url("a b#.png", "w") == url
    assert as_url("a b#.png\n", "w") == as_url(f" {file}\r\n", "w") == url  # lines of a file
    assert as_url(["a b#.png", PICTURE, url], "w") == [url, PICTURE, url]
    assert as_url(("a b#.png", {"fps": 1}), "w") == (url, {"fps": 1})
    for kept in (
        "http://x/y.png",
        "data:image/png;base64,AA",
        "DATA:,",
        "file:///x",
        "ftp://x",
        "\n file:///x",
        PICTURE,
        b"x",
        CLIP,
    ):
        assert as_url(kept, "w") is kept
    for wrong in ("none.png", str(tmp_path), "A" * 10_000, "\0"):
        with pytest.raises(RequestError, match=r"^w(\[1\])?: '.*' is neither a URL nor the path of a file") as caught:
            as_url(wrong, "w")
        assert len(caught.value.message) < 250
    with pytest.raises(RequestError, match=r"^w\[1\]: "):
        as_url(["a b#.png", "none.png"], "w")


@pytest.mark.parametrize(
    ("modality", "source", "got"),
    [
        ("video", PICTURE, "one PIL image (a list of them is a clip)"),
        ("video", [], "an empty list"),
        ("video", {"a": 1}, "an object of type dict"),
        ("image", [PICTURE], "a list"),
        ("image", 5, "an object of type int"),
        ("image", None, "an object of type NoneType"),
    ],
)
def test_no_message_contradicts_itself(modality: Any, source: Any, got: str) -> None:
    """What came is never among what is expected."""
    expected, _, told = wrong_object(source, modality, "w").message.partition("; got ")
    assert expected.startswith("w: expected a URL") and "in Python a path, a file's bytes, " in expected and told == got
    assert ("PIL image" in expected) == (modality == "image")
