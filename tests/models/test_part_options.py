"""What parts and media_io_kwargs say reaches each family's processor: sizes, frames, caches, and refusals by name."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests import tiny, tiny_internvl, tiny_minicpmv
from tests.media.samples import clip, data_url, encoded, noise
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError, RequestError
from trifocal.prompt.builder import PromptBuilder
from trifocal.types import MediaItem, Prompt

WRITERS = {
    "qwen": tiny.write_checkpoint,
    "internvl": lambda folder: tiny_internvl.write_checkpoint(folder, layout="native"),
    "minicpmv": lambda folder: tiny_minicpmv.write_checkpoint(folder, "2.6"),
}
PICTURE = PIL.Image.fromarray(noise(200, 300))
PNG = data_url(encoded(PICTURE, "PNG"))
MP4 = data_url(clip(40, 10, size=(96, 64)), "video/mp4")  # four seconds
FRAMES = [encoded(PIL.Image.fromarray(noise(64, 96, seed=k)), "JPEG") for k in range(6)]
FRAME_LIST = "data:video/jpeg;base64," + ",".join(data_url(frame).partition(",")[2] for frame in FRAMES)


class Family:
    """A family's prompt builder, and short names for what the tests do."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = WRITERS[name](folder)
        self.builder = self.build()

    def build(self, **flags: Any) -> PromptBuilder:
        """Another builder on the same checkpoint."""
        return PromptBuilder(resolve(EngineArgs(model=str(self.folder), device="cpu", **flags)))

    def ask(self, *parts: dict[str, Any], **options: Any) -> Prompt:
        """The prompt of one message."""
        return self.builder.chat_sync([{"role": "user", "content": list(parts)}], **options)

    def picture(self, **own: Any) -> MediaItem:
        """A picture whose part says `own`."""
        return self.ask({"type": "image_url", "image_url": {"url": PNG}, **own}).media[0]

    def clip(
        self, url: Any = MP4, *, builder: PromptBuilder | None = None, request: Any = None, **own: Any
    ) -> MediaItem:
        """A clip whose part says `own`."""
        part = {"type": "video_url", "video_url": {"url": url, **own}}
        asked = builder or self.builder
        return asked.chat_sync([{"role": "user", "content": [part]}], **(request or {})).media[0]

    def frames(self, item: MediaItem) -> int:
        """Frames that a clip's item is made of, in its grid's terms: pairs for Qwen."""
        if self.name == "minicpmv":
            return sum(item.grid[2::3]) if item.grid[2] > 1 else len(item.grid) // 6 or 1
        return item.grid[0] * (2 if self.name == "qwen" else 1)


@pytest.fixture(scope="module", params=list(WRITERS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    made = Family(request.param, tmp_path_factory.mktemp(request.param) / "model")
    yield made
    made.builder.close()


SMALLER = {
    "qwen": {"max_pixels": 8 * 784},
    "internvl": {"max_dynamic_patch": 2},
    "minicpmv": {"max_slice_nums": 2},
}
NOT_HAD = {
    "qwen": {"max_slice_nums": 2},
    "internvl": {"max_pixels": 50_000},
    "minicpmv": {"max_pixels": 50_000},
}


def test_a_picture_of_its_own_size(family: Family) -> None:
    """The part's option is that of the request for this item alone, and the item's name knows it."""
    smaller = SMALLER[family.name]
    part = {"type": "image_url", "image_url": {"url": PNG}}
    both = family.ask(part, {**part, **smaller}).media
    whole, small = family.ask(part).media[0], family.ask(part, mm_processor_kwargs=smaller).media[0]
    assert [item.content_hash for item in both] == [whole.content_hash, small.content_hash]
    assert both[0].content_hash != both[1].content_hash and both[1].span.length < both[0].span.length
    inside = {"type": "image_url", "image_url": {"url": PNG, **smaller}}
    assert family.ask(inside, part).media[0].content_hash == small.content_hash  # from the cache of pixels, too
    offline = family.ask({"type": "image", "image": PICTURE, **smaller}).media[0]
    assert offline.content_hash == small.content_hash


@pytest.mark.parametrize(
    ("name", "own", "same"),
    [
        ("internvl", {"max_patches": 2}, {"max_dynamic_patch": 2}),
        ("internvl", {"crop_to_patches": False}, {"dynamic_image_size": False}),
        ("internvl", {"max_dynamic_patch": 2, "use_thumbnail": False}, {"max_patches": 2, "use_thumbnail": False}),
        ("qwen", {"resized_height": 112, "resized_width": 84}, {"resized_height": 110, "resized_width": 90}),
    ],
)
def test_other_options_of_pictures(family: Family, name: str, own: dict[str, Any], same: dict[str, Any]) -> None:
    if family.name == name:
        small = family.picture(**own)
        assert small.content_hash == family.picture(**same).content_hash != family.picture().content_hash
    else:
        with pytest.raises(RequestError, match=rf"image_url: '{next(iter(own))}' is not known"):
            family.picture(**own)


def test_frames_of_a_clip(family: Family) -> None:
    names = set()
    for count in (2, 4, 8):
        for name in ("nframes", "num_frames"):
            item = family.clip(**{name: count})
            assert family.frames(item) == count
            names.add(item.content_hash)
    assert len(names) == 3
    assert family.frames(family.clip(fps=1.0)) == 4
    assert family.frames(family.clip(fps=1.0, request={"mm_processor_kwargs": {"num_frames": 8}})) == 4
    assert family.frames(family.clip(request={"mm_processor_kwargs": {"num_frames": 8}})) == 8
    assert family.frames(family.clip(request={"mm_processor_kwargs": {"fps": [1.0], "do_sample_frames": True}})) == 4


def test_reading_of_a_clip(family: Family) -> None:
    """media_io_kwargs of a request, of the server, and what is said more closely."""

    def asked(**video: Any) -> dict[str, Any]:
        return {"media_io_kwargs": {"video": video}}

    assert family.frames(family.clip(request=asked(num_frames=8))) == 8
    assert family.frames(family.clip(request=asked(num_frames=30, fps=1.0))) == 4
    assert family.frames(family.clip(request=asked(num_frames=-1))) == 40
    assert family.frames(family.clip(request=asked(num_frames=8), num_frames=2)) == 2
    serving = family.build(media_io_kwargs={"video": {"num_frames": 6}})
    try:
        assert family.frames(family.clip(builder=serving)) == 6
        assert family.frames(family.clip(builder=serving, request=asked(fps=1))) == 4
        assert family.frames(family.clip(builder=serving, request={"mm_processor_kwargs": {"num_frames": 2}})) == 2
    finally:
        serving.close()
    with pytest.raises(ConfigError, match="--media-io-kwargs: video: num_frames must be"):
        family.build(media_io_kwargs={"video": {"num_frames": "many"}})


def test_a_clip_as_a_list_of_pictures(family: Family) -> None:
    """The same frames in every form that they come in; all of them, unless fewer are asked for."""
    arrays = [np.asarray(PIL.Image.open(io.BytesIO(frame))) for frame in FRAMES]
    placeholder = family.builder.processor.placeholder("video")
    item = family.clip(FRAME_LIST)
    assert family.frames(item) == 6
    urls = [data_url(frame, "image/jpeg") for frame in FRAMES]
    forms = [family.clip(urls), family.ask({"type": "video", "video": urls}).media[0]]
    floats = np.stack(arrays).astype(np.float32) / 255
    for given in (
        [PIL.Image.fromarray(array) for array in arrays], arrays, np.stack(arrays), floats.transpose(0, 3, 1, 2),
        FRAMES,
    ):  # fmt: skip
        forms.append(family.builder.build(placeholder, {"video": [given]}).media[0])
    assert {form.content_hash for form in forms} == {item.content_hash}
    fewer = family.clip(FRAME_LIST, num_frames=4)
    assert family.frames(fewer) == 4
    assert family.frames(family.clip(FRAME_LIST, request={"mm_processor_kwargs": {"num_frames": 4}})) == 4
    kept = family.clip(FRAME_LIST, do_sample_frames=False, num_frames=4)
    assert kept.content_hash == item.content_hash


def test_options_that_a_family_lacks_are_refused_by_name(family: Family) -> None:
    own = NOT_HAD[family.name]
    [name] = own
    part = {"type": "image_url", "image_url": {"url": PNG}}
    with pytest.raises(RequestError, match=rf"content\[1\].image_url: '{name}' is not known; known: ") as caught:
        family.ask(part, {**part, **own})
    assert caught.value.param == "messages[0].content[1].image_url"
    with pytest.raises(RequestError, match=rf"content\[0\].video_url: '{name}' is not known"):
        family.clip(**own)


def test_a_file_has_fps_or_a_number(family: Family) -> None:
    with pytest.raises(RequestError, match=r"content\[0\].video_url: give fps or num_frames \(nframes\), not both"):
        family.clip(fps=1.0, nframes=4)
    assert family.clip(FRAME_LIST, fps=1.0, nframes=4)


def test_number_of_rates(family: Family) -> None:
    with pytest.raises(RequestError, match="fps is a list of 2 numbers, but there are 1 clips") as caught:
        family.clip(request={"mm_processor_kwargs": {"fps": [1.0, 2.0]}})
    assert caught.value.param == "mm_processor_kwargs"


# ------------------------------------------------------------------------------------------------- too much


def proposed(message: str) -> dict[str, int]:
    """The options that an error proposes."""
    [hint] = re.findall(r"It would fit with (.*) \(in (?:mm_processor_kwargs or in )?each part", message)
    return {name: int(value) for name, value in (each.split(" ") for each in hint.split(" or "))}


@pytest.mark.parametrize("which", ["clip", "pictures", "both"])
def test_what_is_proposed_fits(family: Family, which: str) -> None:
    """For a context of less than the media take: each number that the error names is enough, the next one is not."""
    clips = [{"type": "video_url", "video_url": {"url": MP4}}]
    pictures = [{"type": "image_url", "image_url": {"url": PNG}}] * 2
    parts = {"clip": clips, "pictures": pictures, "both": [*clips, *pictures]}[which]
    everything = {} if which == "pictures" else {"num_frames": 16}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, *parts]}]
    limit = len(family.builder.chat_sync(messages, mm_processor_kwargs=everything).token_ids) * 3 // 4
    short = family.build(max_model_len=limit)

    def fits(name: str, value: int) -> bool:
        """Whether there is room for the prompt and a token of an answer."""
        try:
            prompt = short.chat_sync(messages, mm_processor_kwargs={**everything, name: value})
        except RequestError:
            return False
        return len(prompt.token_ids) < limit

    try:
        with pytest.raises(RequestError, match="maximum context length is") as caught:
            short.chat_sync(messages, mm_processor_kwargs=everything)
        error = caught.value
        assert (error.param, error.code) == ("messages", "context_length_exceeded")
        assert re.search(r"messages\[0\]\.content\[\d\]\.(image|video)_url takes \d+ tokens", error.message)
        found = proposed(error.message)
        assert found and found.keys() <= {"num_frames", *SMALLER[family.name]}
        assert "num_frames" in found or which != "clip"
        for name, value in found.items():
            assert fits(name, value)
            assert not fits(name, value + (784 if name == "max_pixels" else 1))
    finally:
        short.close()


def test_what_the_encoder_s_cache_does_not_hold(family: Family) -> None:
    """A clip of 16 frames where there is room for the embeddings of half of it; the proposal is taken."""
    whole = family.clip(num_frames=16)
    config = family.builder.config
    num_bytes = whole.span.num_embeds * config.model.spec.text.hidden_size * 4 // 2
    small = family.build(dtype="float32", encoder_cache_gib=num_bytes / (1 << 30))
    try:
        with pytest.raises(RequestError, match=r"one video takes \d+ embeddings, but the .*encoder-cache") as caught:
            family.clip(builder=small, request={"mm_processor_kwargs": {"num_frames": 16}})
        assert (caught.value.status, caught.value.param) == (413, "messages")
        value = proposed(caught.value.message)["num_frames"]
        fewer = family.clip(builder=small, request={"mm_processor_kwargs": {"num_frames": value}})
        assert value >= 2 and fewer.span.num_embeds * 2 <= whole.span.num_embeds
    finally:
        small.close()


def test_what_is_proposed_is_said_where_it_rules(family: Family) -> None:
    """Parts that say a number themselves: mm_processor_kwargs would change nothing, so parts alone are named."""
    content = [{"type": "video_url", "video_url": {"url": MP4}, "num_frames": count} for count in (16, 2)]
    whole = len(family.ask(*content).token_ids)
    short = family.build(max_model_len=whole * 3 // 4)
    try:
        with pytest.raises(RequestError, match=r"\(in each part concerned\)") as caught:
            short.chat_sync([{"role": "user", "content": content}])
        value = proposed(caught.value.message)["num_frames"]
        short.chat_sync([{"role": "user", "content": [{**part, "num_frames": value} for part in content]}])
    finally:
        short.close()


def test_what_is_proposed_fits_in_all_limits(family: Family) -> None:
    """A prompt that is too long, whose clip is too much for the encoder's cache as well."""
    part = {"type": "video_url", "video_url": {"url": MP4}}
    whole = family.ask(part, mm_processor_kwargs={"num_frames": 16})
    config, embeds = family.builder.config, whole.media[0].span.num_embeds
    room = embeds // 4 * config.model.spec.text.hidden_size * 4 / (1 << 30)
    short = family.build(dtype="float32", encoder_cache_gib=room, max_model_len=len(whole.token_ids) * 3 // 4)
    try:
        with pytest.raises(RequestError, match="maximum context length is") as caught:
            short.chat_sync([{"role": "user", "content": [part]}], mm_processor_kwargs={"num_frames": 16})
        for name, value in proposed(caught.value.message).items():
            prompt = short.chat_sync(
                [{"role": "user", "content": [part]}], mm_processor_kwargs={"num_frames": 16, name: value}
            )
            assert prompt.media[0].span.num_embeds <= embeds // 4
    finally:
        short.close()


def test_frames_that_are_asked_to_be_sampled(family: Family) -> None:
    """Of a list of frames `num_frames` above their number means all of them, however many were used before."""
    request = {"mm_processor_kwargs": {"num_frames": 2, "do_sample_frames": True}}
    content = [
        {"type": "video_url", "video_url": {"url": MP4}, "num_frames": 40},
        *[{"type": "video_url", "video_url": {"url": FRAME_LIST}}] * 3,
    ]
    short = family.build(max_model_len=len(family.ask(*content, **request).token_ids) - 1)
    try:
        with pytest.raises(RequestError, match="maximum context length is") as caught:
            short.chat_sync([{"role": "user", "content": content}], **request)
        for name, value in proposed(caught.value.message).items():
            short.chat_sync([{"role": "user", "content": [{**part, name: value} for part in content]}], **request)
    finally:
        short.close()


def test_nothing_is_proposed_where_nothing_helps(family: Family) -> None:
    words = {"type": "text", "text": "word " * 60}
    short = family.build(max_model_len=64)
    try:
        with pytest.raises(RequestError, match="maximum context length is 64") as caught:
            short.chat_sync([{"role": "user", "content": [words, {"type": "image_url", "image_url": PNG}]}])
        assert "would fit" not in caught.value.message
    finally:
        short.close()


def test_too_many_frames(family: Family) -> None:
    """`num_frames` as proposed is allowed, Qwen's even numbers included."""
    few = family.build(max_video_frames=7)
    try:
        for url in (MP4, FRAME_LIST + FRAME_LIST.partition(",")[2].join(",,")[:-1]):
            with pytest.raises(
                RequestError, match=r"at most 7 are allowed .*; num_frames \d would be allowed"
            ) as caught:
                family.clip(url, builder=few, request={"mm_processor_kwargs": {"num_frames": 12}})
            value = int(re.findall(r"num_frames (\d) would", caught.value.message)[0])
            assert value >= 6
            family.clip(url, builder=few, request={"mm_processor_kwargs": {"num_frames": value}})
        with pytest.raises(RequestError, match="at most 7 .*do_sample_frames is false.*send fewer") as caught:
            family.clip(url, builder=few, do_sample_frames=False)
        assert "num_frames" not in caught.value.message  # it would not help
    finally:
        few.close()
