"""The processor against transformers' own image processor, golden tables, and hand-made arrays."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import skimage.data
from numpy.typing import NDArray

from tests import tiny
from trifocal.errors import RequestError
from trifocal.media.media import Image, Video
from trifocal.media.patches import PatchLayout
from trifocal.model_spec import ModelSpec
from trifocal.models.qwen2_5_vl.options import MediaOptions, PixelLimits
from trifocal.models.qwen2_5_vl.preprocess import TokenGrid, mrope_positions, smart_resize
from trifocal.models.qwen2_5_vl.processor import Qwen2_5_VLProcessor
from trifocal.tokenizer import Tokenizer
from trifocal.types import Span

RELEASED = PixelLimits(3136, 12845056)
IDS = tiny.token_ids()
IMAGE, VIDEO = IDS["<|image_pad|>"], IDS["<|video_pad|>"]
START, END = IDS["<|vision_start|>"], IDS["<|vision_end|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tiny tokenizer."""
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(tiny.tokenizer_json()), {})


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A tiny checkpoint with the limits of the released ones."""
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("processor") / "model")
    limits = {"min_pixels": RELEASED.min_pixels, "max_pixels": RELEASED.max_pixels}
    return replace(ModelSpec.from_checkpoint(str(folder)), preprocessor_config=limits)


@pytest.fixture(scope="module")
def processor(spec: ModelSpec, tokenizer: Tokenizer) -> Qwen2_5_VLProcessor:
    """Released limits."""
    return Qwen2_5_VLProcessor(spec, tokenizer)


def with_config(spec: ModelSpec, tokenizer: Tokenizer, **preprocessor: Any) -> Qwen2_5_VLProcessor:
    """A processor for another preprocessor_config.json."""
    return Qwen2_5_VLProcessor(replace(spec, preprocessor_config=preprocessor), tokenizer)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def normalised(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the model does to the rows, column by column."""
    mean = np.repeat(np.array(tiny.IMAGE_MEAN, np.float32), rows.shape[1] // 3)
    std = np.repeat(np.array(tiny.IMAGE_STD, np.float32), rows.shape[1] // 3)
    return ((rows * (1 / 255)).astype(np.float32) - mean) / std  # the product in float64, as the reference does it


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("width", "height", "resized", "num_tokens"),
    [
        (512, 512, (504, 504), 324),
        (640, 480, (476, 644), 391),
        (1280, 720, (728, 1288), 1196),
        (1920, 1080, (1092, 1932), 2691),
        (4032, 3024, (3024, 4032), 15552),
        (100, 40, (28, 112), 4),
        (30, 30, (56, 56), 4),
        (1, 1, (56, 56), 4),
    ],
)
def test_golden_sizes(
    processor: Qwen2_5_VLProcessor, width: int, height: int, resized: tuple[int, int], num_tokens: int
) -> None:
    assert smart_resize(height, width, 28, RELEASED) == resized
    assert processor.plan("image", (1, height, width), {}).num_tokens == num_tokens


def test_sizes_are_those_of_transformers() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference

    random = np.random.default_rng(7)
    for _ in range(2000):
        height, width = (int(side) for side in np.exp(random.uniform(0, 9, 2)))
        low = int(np.exp(random.uniform(6, 12)))
        limits = PixelLimits(low, low + int(np.exp(random.uniform(7, 16))))
        if max(height, width) > 200 * min(height, width):
            continue
        expected = reference(height, width, 28, limits.min_pixels, limits.max_pixels)
        assert smart_resize(height, width, 28, limits) == expected


@pytest.mark.parametrize(("width", "height"), [(20000, 1), (1, 201), (5628, 28)])
def test_extreme_aspect_ratio_is_refused(processor: Qwen2_5_VLProcessor, width: int, height: int) -> None:
    with pytest.raises(RequestError, match="aspect ratio") as caught:
        processor.plan("image", (1, height, width), {})
    assert (caught.value.param, caught.value.status) == ("messages", 400)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, PixelLimits(3136, 1003520)),
        ({"min_pixels": 784, "max_pixels": 7840}, PixelLimits(784, 7840)),
        ({"size": {"shortest_edge": 100, "longest_edge": 20000}}, PixelLimits(100, 20000)),
        ({"size": {"min_pixels": 100, "max_pixels": 20000}}, PixelLimits(100, 20000)),
        ({"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 3, "max_pixels": 4}, PixelLimits(3, 4)),
    ],
)
def test_limits_of_a_checkpoint(config: dict[str, Any], expected: PixelLimits) -> None:
    assert PixelLimits.of_checkpoint(config) == expected


# ------------------------------------------------------------------------------------------------- pixels


def assert_equals_transformers(processor: Qwen2_5_VLProcessor, limits: PixelLimits, pixels: NDArray[np.uint8]) -> None:
    """Rows and grid of one image are bit for bit those of Qwen2VLImageProcessorPil."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    reference = Qwen2VLImageProcessorPil(size=size)(PIL.Image.fromarray(pixels), return_tensors="np")
    item = processor.build([IMAGE], [Image(pixels)], {}).media[0]
    assert list(item.grid) == reference["image_grid_thw"][0].tolist()
    assert isinstance(item.pixels, np.ndarray) and item.pixels.dtype == np.uint8
    np.testing.assert_array_equal(normalised(item.pixels), reference["pixel_values"])


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_photographs_bit_equal(processor: Qwen2_5_VLProcessor, name: str) -> None:
    assert_equals_transformers(processor, RELEASED, getattr(skimage.data, name)())


def test_odd_sizes_bit_equal(processor: Qwen2_5_VLProcessor, spec: ModelSpec, tokenizer: Tokenizer) -> None:
    random = np.random.default_rng(3)
    sizes = [(1, 1), (28, 28), (56, 84), (55, 500), (333, 77)]
    sizes += [tuple(random.integers(2, 400, 2)) for _ in range(8)]
    small = with_config(spec, tokenizer, min_pixels=4 * 784, max_pixels=40 * 784)
    for index, (height, width) in enumerate(sizes):
        if max(height, width) > 200 * min(height, width):
            continue
        pixels = noise(height, width, 3, seed=index)
        assert_equals_transformers(processor, RELEASED, pixels)
        assert_equals_transformers(small, PixelLimits(4 * 784, 40 * 784), pixels)


def test_patches_of_a_clip() -> None:
    """Every value stands where the definition says: rows (t, gh, gw, mh, mw), columns (C, T, y, x)."""
    frames = noise(4, 56, 84, 3)
    rows = PatchLayout().patchify(frames)
    assert rows.shape == (2 * 4 * 6, 1176)
    row = 0
    for t in range(2):
        for gh in range(2):
            for gw in range(3):
                for mh in range(2):
                    for mw in range(2):
                        y, x = (gh * 2 + mh) * 14, (gw * 2 + mw) * 14
                        patch = frames[2 * t : 2 * t + 2, y : y + 14, x : x + 14]
                        np.testing.assert_array_equal(rows[row], patch.transpose(3, 0, 1, 2).ravel())
                        row += 1


def test_odd_clip_repeats_its_last_frame() -> None:
    frames = noise(3, 28, 28, 3)
    np.testing.assert_array_equal(
        PatchLayout().patchify(frames), PatchLayout().patchify(np.concatenate([frames, frames[-1:]]))
    )


def test_large_photo_is_quick(processor: Qwen2_5_VLProcessor) -> None:
    pixels = np.zeros((3024, 4032, 3), np.uint8)
    start = time.thread_time()  # of this thread: the machine may be busy with others
    item = processor.build([IMAGE], [Image(pixels)], {}).media[0]
    assert item.grid == (1, 216, 288)
    assert time.thread_time() - start < 1.5  # about 0.15 s on an idle core


# ------------------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize(
    ("total", "fps", "options", "expected", "sampled_fps"),
    [
        (90, 30.0, {}, [0, 18, 36, 53, 71, 89], 2.0),
        (30, 10.0, {}, [0, 6, 12, 17, 23, 29], 2.0),
        (10, 30.0, {}, [0, 3, 6, 9], 12.0),  # least 4 frames
        (3, 30.0, {}, [0, 2], 20.0),  # never more than there are, and even
        (1, 25.0, {}, [0], 25.0),
        (90, 30.0, {"fps": 1}, [0, 30, 59, 89], 4 / 3),
        (90, 30.0, {"num_frames": 4}, [0, 30, 59, 89], 4 / 3),
        (90, 30.0, {"fps": 2, "num_frames": 5}, [0, 30, 59, 89], 4 / 3),  # the later of the two rules
        (90, 30.0, {"num_frames": 2, "fps": 1}, [0, 30, 59, 89], 4 / 3),
        (90, 30.0, {"num_frames": 1}, [0, 89], 2 / 3),
        (5, 30.0, {"num_frames": 64}, [0, 1, 3, 4], 24.0),
        (90, 30.0, {"max_frames": 5}, [0, 30, 59, 89], 4 / 3),
        (90, 30.0, {"fps": 0.1, "min_frames": 1}, [0, 89], 2 / 3),
    ],
)
def test_sampled_frames(
    processor: Qwen2_5_VLProcessor, total: int, fps: float, options: dict[str, Any], expected: list[int],
    sampled_fps: float,
) -> None:  # fmt: skip
    sample = processor.sample_frames(total, fps, options)
    assert sample.indices.tolist() == expected
    assert sample.fps == pytest.approx(sampled_fps)


def test_long_clip_is_bounded_in_frames_and_pixels(processor: Qwen2_5_VLProcessor) -> None:
    sample = processor.sample_frames(30 * 3600, 30.0, {})
    assert len(sample.indices) == 768
    # qwen-vl-utils: 128000 * 0.9 tokens' worth of pixels, half of it per frame pair, at least 1.05 * 128 tokens.
    assert MediaOptions().frame_limits(RELEASED, 768) == PixelLimits(100352, 235200)
    assert MediaOptions().frame_limits(RELEASED, 4) == PixelLimits(100352, 602112)
    assert MediaOptions().frame_limits(RELEASED, 100_000) == PixelLimits(100352, 105369)


def test_frame_limits_of_requests_and_small_models() -> None:
    assert MediaOptions(max_pixels=50_000).frame_limits(RELEASED, 8) == PixelLimits(100352, 50_000)
    assert MediaOptions(max_pixels=10**7).frame_limits(RELEASED, 8) == PixelLimits(100352, 602112)
    assert MediaOptions(min_pixels=784).frame_limits(RELEASED, 8) == PixelLimits(784, 602112)
    demo = PixelLimits(84 * 84, 168 * 168)
    assert MediaOptions().frame_limits(demo, 8) == demo
    medium = PixelLimits(3136, 200_000)
    assert MediaOptions().frame_limits(medium, 8) == PixelLimits(100352, 200_000)


def test_golden_clip(processor: Qwen2_5_VLProcessor) -> None:
    """Nine frames of 100 x 140 at 3 a second."""
    prompt = processor.build([START, VIDEO, END], [Video(noise(9, 100, 140, 3), 3.0)], {})
    item = prompt.media[0]
    assert item.grid == (5, 20, 28)
    assert item.span == Span(1, 700)
    assert processor.plan("video", (9, 100, 140), {}).num_tokens == 700
    assert prompt.positions is not None
    # 2/3 s a grid, 2 tokens a second: 0, 1.33, 2.67, 4, 5.33 rounded down.
    assert prompt.positions[0, 1:701:140].tolist() == [1, 2, 3, 5, 6]


def test_clip_frames_are_images_in_pairs(processor: Qwen2_5_VLProcessor) -> None:
    """A clip of one picture shown twice is that picture's rows."""
    pixels = noise(504, 504, 3)
    clip = processor.build([VIDEO], [Video(np.stack([pixels, pixels]), 2.0)], {}).media[0]
    image = processor.build([IMAGE], [Image(pixels)], {}).media[0]
    np.testing.assert_array_equal(np.asarray(clip.pixels), np.asarray(image.pixels))
    assert clip.content_hash != image.content_hash


def test_scaling_beforehand_changes_nothing(processor: Qwen2_5_VLProcessor) -> None:
    """Also where a second plan would not be the first: strips, which may even become too long for the rule."""
    random = np.random.default_rng(5)
    sizes = [(30, 5990), (28, 5600), (5600, 28), (1, 200), (27, 30)]
    sizes += [tuple(int(side) for side in np.exp(random.uniform(1, 8, 2))) for _ in range(500)]
    for height, width in sizes:
        if max(height, width) > 200 * min(height, width):
            continue
        for modality in ("image", "video"):
            for options in ({}, {"max_pixels": 100 * 784}, {"max_pixels": 5 * 784}):
                size = (4, height, width)
                plan = processor.plan(modality, size, options)
                assert plan.decoded == plan.resized and (plan.size, plan.num_frames) == (size[1:], 4)
                assert plan.num_tokens == plan.num_embeds == 2 * plan.resized[0] // 28 * plan.resized[1] // 28
    for height, width in sizes[:5]:
        if max(height, width) > 200 * min(height, width):
            continue
        pixels, plan = noise(height, width, 3), processor.plan("image", (1, height, width), {})
        scaled = PIL.Image.fromarray(pixels).resize(plan.decoded[::-1], PIL.Image.Resampling.BICUBIC)
        once, beforehand = (
            processor.build([IMAGE], [item], {}) for item in (Image(pixels), Image(np.asarray(scaled), plan))
        )
        assert beforehand.token_ids == once.token_ids
        assert beforehand.media[0].content_hash == once.media[0].content_hash


def test_frames_may_come_scaled(processor: Qwen2_5_VLProcessor) -> None:
    frames = noise(4, 300, 200, 3)
    plan = processor.plan("video", (4, 300, 200), {})
    size = plan.decoded[::-1]
    scaled = np.stack([PIL.Image.fromarray(f).resize(size, PIL.Image.Resampling.BICUBIC) for f in frames])
    whole = processor.build([VIDEO], [Video(frames, 2.0)], {}).media[0]
    assert processor.build([VIDEO], [Video(scaled, 2.0, plan)], {}).media[0].content_hash == whole.content_hash


# ------------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("seconds", "times", "text", "delta"),
    [
        (1.0, [3, 5, 7, 9], [10, 11, 12], -9),
        (0.5, [3, 4, 5, 6], [7, 8, 9], -12),
        (1.5, [3, 6, 9, 12], [13, 14, 15], -6),
    ],
)
def test_golden_positions(seconds: float, times: list[int], text: list[int], delta: int) -> None:
    """Four grids of 2 x 2 from index 3: the released rule."""
    positions, found = mrope_positions(22, [TokenGrid(3, 4, 2, 2, seconds)], 2.0)
    assert positions.dtype == np.int64
    assert positions[:, :3].tolist() == [[0, 1, 2]] * 3
    assert positions[0, 3:19].tolist() == [time for time in times for _ in range(4)]
    assert positions[1, 3:19].tolist() == [3, 3, 4, 4] * 4
    assert positions[2, 3:19].tolist() == [3, 4, 3, 4] * 4
    assert positions[:, 19:].tolist() == [text] * 3
    assert found == delta


def test_image_positions_are_those_of_transformers(processor: Qwen2_5_VLProcessor) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(tiny.config()))
    token_ids = [1, 2, START, IMAGE, END, 5, START, IMAGE, END, 6, 7]
    prompt = processor.build(token_ids, [Image(noise(100, 200, 3)), Image(noise(300, 60, 3))], {})
    grids = torch.tensor([item.grid for item in prompt.media])
    kinds = torch.tensor([[int(token_id == IMAGE) for token_id in prompt.token_ids]])
    expected, delta = model.model.get_rope_index(
        torch.tensor([prompt.token_ids]), image_grid_thw=grids, mm_token_type_ids=kinds
    )
    assert prompt.positions is not None
    np.testing.assert_array_equal(prompt.positions, expected[:, 0].numpy())
    assert prompt.position_delta == delta.item()


def test_text_positions_are_indices(processor: Qwen2_5_VLProcessor) -> None:
    prompt = processor.build([5, 6, 7], [], {})
    assert prompt.positions is not None and prompt.positions.tolist() == [[0, 1, 2]] * 3
    assert (prompt.position_delta, prompt.media) == (0, ())


# ------------------------------------------------------------------------------------------------- prompts


def test_media_go_to_their_placeholders(processor: Qwen2_5_VLProcessor) -> None:
    first, second, clip = noise(56, 56, 3, seed=1), noise(84, 84, 3, seed=2), noise(2, 280, 392, 3)
    token_ids = [9, START, IMAGE, END, START, VIDEO, END, START, IMAGE, END]
    prompt = processor.build(token_ids, [Image(first), Video(clip, 2.0), Image(second)], {})
    assert [(item.modality, item.grid) for item in prompt.media] == [
        ("image", (1, 4, 4)), ("video", (1, 20, 28)), ("image", (1, 6, 6)),
    ]  # fmt: skip
    assert [item.span for item in prompt.media] == [Span(2, 4), Span(8, 140), Span(150, 9)]
    assert prompt.token_ids[:8] == [9, START, *[IMAGE] * 4, END, START]
    assert len(prompt.token_ids) == 160


def test_counts_must_match(processor: Qwen2_5_VLProcessor) -> None:
    with pytest.raises(RequestError, match=r"2 image placeholders .* but 1 image came") as caught:
        processor.build([IMAGE, IMAGE], [Image(noise(28, 28, 3))], {})
    assert caught.value.param == "messages"
    with pytest.raises(RequestError, match=r"0 video placeholders .* but 1 video came"):
        processor.build([5], [Video(noise(2, 28, 28, 3), 1.0)], {})


def test_hash_covers_pixels_grid_time_and_kind(processor: Qwen2_5_VLProcessor) -> None:
    def digest(frames: NDArray[np.uint8], fps: float) -> bytes:
        return processor.build([VIDEO], [Video(frames, fps)], {}).media[0].content_hash

    frames = noise(4, 280, 392, 3)
    changed = frames.copy()
    changed[3, 0, 0, 0] ^= 1
    hashes = {digest(frames, 2.0), digest(frames, 1.0), digest(changed, 2.0), digest(frames[:2], 2.0)}
    assert len(hashes) == 4 and {len(value) for value in hashes} == {16}
    assert digest(frames.copy(), 2.0) in hashes
    wide, tall = np.zeros((56, 112, 3), np.uint8), np.zeros((112, 56, 3), np.uint8)
    pair = [processor.build([IMAGE], [Image(pixels)], {}).media[0].content_hash for pixels in (wide, tall)]
    assert pair[0] != pair[1]  # the same bytes, another grid


def test_later_options_rule() -> None:
    assert MediaOptions.parse({"max_pixels": 5, "size": {"longest_edge": 7}}).max_pixels == 7
    assert MediaOptions.parse({"size": {"longest_edge": 7}, "max_pixels": 5}).max_pixels == 5
    assert MediaOptions.parse({"size": None, "max_pixels": None, "fps": None}) == MediaOptions()


def test_options_change_the_size(processor: Qwen2_5_VLProcessor) -> None:
    pixels = noise(504, 504, 3)
    for options in ({"max_pixels": 50 * 784}, {"size": {"longest_edge": 50 * 784}}):
        item = processor.build([IMAGE], [Image(pixels)], options).media[0]
        assert item.grid == (1, 14, 14)
        assert item.span.length == processor.plan("image", (1, 504, 504), options).num_tokens == 49


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 3},
        {"max_pixels": 0},
        {"max_pixels": "many"},
        {"min_pixels": True},
        {"min_pixels": 10**9},
        {"min_pixels": 2000, "max_pixels": 1000},
        {"size": 5},
        {"size": {"height": 5}},
        {"size": {"shortest_edge": -1}},
        {"fps": 0},
        {"fps": float("nan")},
        {"fps": "fast"},
        {"num_frames": 2.5},
        {"num_frames": -1},
        {"min_frames": 9, "max_frames": 4},
        {"resized_height": 56},
        {"resized_height": 0, "resized_width": 56},
        {"total_pixels": 0.5},
        {"max_pixels": 10**400},
        {"fps": 10**400},
    ],
)
def test_bad_options_are_refused(processor: Qwen2_5_VLProcessor, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        processor.check_options(options)
    assert caught.value.param == "mm_processor_kwargs"


@pytest.mark.parametrize(
    ("wanted", "limits", "grid"),
    [
        ((112, 168), {}, (8, 12)),
        ((100, 170), {}, (8, 12)),  # to multiples of 28, the nearest
        ((112, 168), {"max_pixels": 6 * 784}, (4, 6)),
        ((28, 28), {"min_pixels": 16 * 784}, (8, 8)),
        ((10**9, 10**9), {"max_pixels": 16 * 784}, (8, 8)),
    ],
)
def test_resized_height_and_width(
    processor: Qwen2_5_VLProcessor, wanted: tuple[int, int], limits: dict[str, int], grid: tuple[int, int]
) -> None:
    """As in qwen-vl-utils: the size to start from, whatever the item's own is; frames likewise."""
    options = {"resized_height": wanted[0], "resized_width": wanted[1], **limits}
    frames = np.stack([noise(300, 70, 3)] * 2)
    image, video = processor.build([IMAGE, VIDEO], [Image(frames[0]), Video(frames, 2.0)], options).media
    assert (image.grid[1:], video.grid[1:]) == (grid, grid)
    for modality, item, size in (("image", image, (1, 300, 70)), ("video", video, (2, 300, 70))):
        plan = processor.plan(modality, size, options)
        assert item.span.length == plan.num_tokens
        assert plan.decoded == plan.resized == (grid[0] * 14, grid[1] * 14)


def test_items_have_options_of_their_own(processor: Qwen2_5_VLProcessor) -> None:
    pixels, small = noise(504, 504, 3), {"max_pixels": 50 * 784}
    own = processor.plan("image", (1, 504, 504), small)
    mixed = processor.build([IMAGE, IMAGE], [Image(pixels, own), Image(pixels)], {"max_pixels": 100 * 784})
    assert [item.grid for item in mixed.media] == [(1, 14, 14), (1, 20, 20)]
    alone = processor.build([IMAGE], [Image(pixels)], small).media[0]
    assert mixed.media[0].content_hash == alone.content_hash


def test_total_pixels_are_shared_by_the_frames(processor: Qwen2_5_VLProcessor) -> None:
    shares = [MediaOptions(total_pixels=total).frame_limits(RELEASED, 100).max_pixels for total in (10**7, 2 * 10**7)]
    assert shares == [200_000, 400_000]


def test_placeholders_and_ids_by_name(spec: ModelSpec, tokenizer: Tokenizer) -> None:
    bare = {name: value for name, value in spec.hf_config.items() if not name.endswith("_token_id")}
    by_name = Qwen2_5_VLProcessor(replace(spec, hf_config=bare), tokenizer)
    assert by_name.placeholder("image") == "<|vision_start|><|image_pad|><|vision_end|>"
    assert by_name.placeholder("video") == "<|vision_start|><|video_pad|><|vision_end|>"
    assert by_name.build([IMAGE], [Image(noise(56, 56, 3))], {}).token_ids == [IMAGE] * 4


def test_runs_without_torch() -> None:
    """The processor runs in the server process, which never loads torch."""
    import subprocess
    import sys

    code = (
        "import sys, trifocal.prompt.builder, trifocal.models.qwen2_5_vl.processor\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
