"""The processor against transformers' own image processor, tables measured on it, and hand-made prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny_internvl as tiny
from trifocal.errors import ConfigError, RequestError
from trifocal.media.media import Image, Video
from trifocal.model_spec import ModelSpec
from trifocal.models.internvl.config import VisionConfig
from trifocal.models.internvl.options import MediaOptions, TileLimits
from trifocal.models.internvl.processor import InternVLProcessor
from trifocal.models.internvl.tiling import choose_tiles, cut
from trifocal.tokenizer import load_tokenizer
from trifocal.types import Span

RELEASED = TileLimits(1, 12, True)
IDS = tiny.token_ids()
START, END, CONTEXT = (IDS[name] for name in tiny.SPECIAL)


@pytest.fixture(scope="module", params=["original", "native"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InternVLProcessor:
    return make(tiny.write_checkpoint(tmp_path_factory.mktemp(request.param), layout=request.param))


def make(folder: Path) -> InternVLProcessor:
    return InternVLProcessor(ModelSpec.from_checkpoint(str(folder)), load_tokenizer(str(folder)))


def picture(height: int, width: int, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip(frames: int, seed: int = 0) -> Video:
    return Video(np.random.default_rng(seed).integers(0, 256, (frames, 40, 60, 3), dtype=np.uint8), 2.0)


# ------------------------------------------------------------------------------------------------- tiles


def reference_tiles(pixels: np.ndarray, tile: int, limits: TileLimits) -> np.ndarray:
    """[tiles, tile, tile, 3] of transformers' PIL image processor."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    theirs = GotOcr2ImageProcessorPil(
        size={"height": tile, "width": tile}, do_rescale=False, do_normalize=False, crop_to_patches=True,
        min_patches=limits.min_tiles, max_patches=limits.max_tiles,
    )(pixels, return_tensors="np", input_data_format="channels_last")  # fmt: skip
    return theirs["pixel_values"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("width", "height", "tiles"),
    [(640, 480, 13), (500, 333, 7), (100, 40, 11), (2000, 300, 8), (1280, 720, 9), (512, 512, 1), (1344, 1344, 10)],
)
def test_released_sizes_byte_for_byte(width: int, height: int, tiles: int) -> None:
    """As released: tiles of 448 pixels, 12 at most. The numbers were measured on the reference."""
    pixels = picture(height, width).pixels
    rows, columns, has_thumbnail = choose_tiles(height, width, 448, RELEASED)
    ours = cut(pixels, 448, (rows, columns), has_thumbnail=has_thumbnail)
    assert len(ours) == rows * columns + has_thumbnail == tiles
    assert np.array_equal(ours, reference_tiles(pixels, 448, RELEASED))


def test_tiles_are_the_reference_s_byte_for_byte() -> None:
    rng = np.random.default_rng(3)
    limits = [RELEASED, TileLimits(1, 6, True), TileLimits(3, 9, True), TileLimits(2, 2, True)]
    for index in range(200):
        height, width = rng.integers(1, 140, 2).tolist()
        limit = limits[index % len(limits)]
        pixels = picture(height, width, seed=index).pixels
        rows, columns, has_thumbnail = choose_tiles(height, width, 28, limit)
        ours = cut(pixels, 28, (rows, columns), has_thumbnail=has_thumbnail)
        assert np.array_equal(ours, reference_tiles(pixels, 28, limit)), (height, width)
        assert rows * columns + has_thumbnail == len(ours)


def test_one_tile_without_dynamic_size(processor: InternVLProcessor) -> None:
    assert processor.plan("image", (1, 50, 200), {"dynamic_image_size": False}).num_tokens == tiny.TOKENS_PER_TILE + 2
    assert processor.plan("image", (1, 50, 200), {"crop_to_patches": False}).num_tokens == tiny.TOKENS_PER_TILE + 2
    four = processor.plan("image", (1, 50, 200), {"max_patches": 4})
    assert four == processor.plan("image", (1, 50, 200), {"max_dynamic_patch": 4})
    assert (four.num_tokens, four.num_embeds) == (5 * tiny.TOKENS_PER_TILE + 2, 5 * tiny.TOKENS_PER_TILE)
    assert (four.size, four.decoded, four.resized) == ((50, 200), (50, 200), (tiny.TILE, 4 * tiny.TILE))
    assert (four.tiles, four.num_tiles, four.overview) == ((1, 4), 4, (tiny.TILE, tiny.TILE))
    bare = processor.plan("image", (1, 50, 200), {"max_dynamic_patch": 4, "use_thumbnail": False})
    assert bare.num_tokens == 4 * tiny.TOKENS_PER_TILE + 2
    assert bare.overview is None and bare.decoded == bare.resized, "it is scaled once, so at once"


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": 4}, "'max_pixels' is not known; known: min_dynamic_patch"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be an integer from 1 to 128"),
        ({"max_patches": 10**9}, "max_patches must be an integer from 1 to 128"),
        ({"min_dynamic_patch": True}, "min_dynamic_patch"),
        ({"dynamic_image_size": 1}, "must be true or false"),
        ({"min_dynamic_patch": 5, "max_dynamic_patch": 2}, "above max_dynamic_patch 2"),
        ({"min_dynamic_patch": 13}, "above max_dynamic_patch 12"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"num_frames": 2.5}, "num_frames must be an integer"),
    ],
)
def test_bad_options(processor: InternVLProcessor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        processor.check_options(options)
    assert caught.value.param == "mm_processor_kwargs"


def test_defaults_of_the_original_class(tmp_path: Path) -> None:
    """A file that says nothing: 6 tiles at most, but not dynamic, no thumbnail; ps_version v1."""
    spec = ModelSpec.from_checkpoint(str(tiny.write_checkpoint(tmp_path)))
    silent = {name: value for name, value in spec.hf_config.items() if "dynamic" not in name and name != "ps_version"}
    silent.pop("use_thumbnail")
    spec = replace(spec, hf_config=silent, preprocessor_config={"crop_size": 448})
    assert MediaOptions.of_checkpoint(spec) == MediaOptions(1, 6, False, False)
    config = VisionConfig.from_spec(spec)
    assert config.is_transposed and config.image_mean == tiny.IMAGE_MEAN and config.image_std == tiny.IMAGE_STD


# ------------------------------------------------------------------------------------------------- prompts


def test_image_prompt(processor: InternVLProcessor) -> None:
    tokenizer = processor.tokenizer
    text = processor.normalize_prompt("a <image>\nb <image> c")
    assert text == "a <IMG_CONTEXT>\nb <IMG_CONTEXT> c"
    ids = tokenizer.encode(text)
    items = [picture(60, 60), picture(50, 200, seed=1)]
    prompt = processor.build(ids, items, {})
    counts = [1, 5]
    expected: list[int] = []
    images = iter(counts)
    for token_id in ids:
        many = next(images) * tiny.TOKENS_PER_TILE if token_id == CONTEXT else 0
        expected += [START, *[CONTEXT] * many, END] if many else [token_id]
    assert prompt.token_ids == expected and prompt.positions is None
    assert [item.grid for item in prompt.media] == [(1, 4, 4), (5, 4, 4)]
    first = expected.index(CONTEXT)
    assert prompt.media[0].span == Span(first, 4) and prompt.media[1].span.length == 20
    assert all(np.asarray(item.pixels).shape == (item.grid[0] * 16, 588) for item in prompt.media)
    assert prompt.media[0].content_hash != prompt.media[1].content_hash
    sizes = [processor.plan("image", item.size, {}).num_tokens for item in items]
    assert len(prompt.token_ids) == len(ids) - 2 + sum(sizes)


def test_video_prompt(processor: InternVLProcessor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(processor.normalize_prompt("<video>\nWhat?"))
    prompt = processor.build(ids, [clip(3)], {})
    tile = [START, *[CONTEXT] * 4, END]
    names = [tokenizer.encode(text) for text in ("Frame1: ", "\nFrame2: ", "\nFrame3: ")]
    expected = [*names[0], *tile, *names[1], *tile, *names[2], *tile, *tokenizer.encode("\nWhat?")]
    assert prompt.token_ids == expected
    item = prompt.media[0]
    assert (item.modality, item.grid, item.span.num_embeds) == ("video", (3, 4, 4), 12)
    inside = expected[item.span.offset : item.span.end]
    assert item.span.is_embed == tuple(token_id == CONTEXT for token_id in inside)
    assert inside[0] == inside[-1] == CONTEXT
    assert processor.plan("video", (3, 40, 60), {}).num_tokens == len(expected) - len(tokenizer.encode("\nWhat?"))
    assert processor.plan("video", (3, 40, 60), {}).decoded == (tiny.TILE, tiny.TILE)


def test_images_and_videos_find_their_placeholders(processor: InternVLProcessor) -> None:
    ids = processor.tokenizer.encode(processor.normalize_prompt("<image><video><image>"))
    prompt = processor.build(ids, [clip(2), picture(9, 9), picture(9, 30)], {})
    assert [item.modality for item in prompt.media] == ["image", "video", "image"]
    single = processor.build(processor.tokenizer.encode(processor.normalize_prompt("<video>")), [clip(1)], {})
    assert single.media[0].span.is_embed is None


@pytest.mark.parametrize("text", ["no picture", "<image> <image>", "<video>"])
def test_counts_must_match(processor: InternVLProcessor, text: str) -> None:
    with pytest.raises(RequestError, match=r"placeholders? \(<(image|video)>\)") as caught:
        processor.build(processor.tokenizer.encode(processor.normalize_prompt(text)), [picture(9, 9)], {})
    assert caught.value.param == "messages"


def test_frames_of_the_readme_and_of_transformers(tmp_path: Path) -> None:
    original, native = (
        make(tiny.write_checkpoint(tmp_path / layout, layout=layout)) for layout in ("original", "native")
    )
    eight = {"num_frames": 8}
    assert original.sample_frames(100, 25.0, eight).indices.tolist() == [6, 18, 31, 43, 56, 68, 80, 93]
    assert native.sample_frames(100, 25.0, eight).indices.tolist() == [6, 18, 31, 43, 56, 68, 81, 93]
    for total in (1, 2, 7, 31, 33, 250, 999):
        for count in (1, 2, 5, 8, 32):
            theirs = torch.arange(total / count / 2, total, total / count).int()
            ours = native.sample_frames(total, 30.0, {"num_frames": count})
            if count <= total:
                assert ours.indices.tolist() == theirs.tolist()
            assert len(ours.indices) == min(count, total) and ours.fps == pytest.approx(len(ours.indices) / total * 30)
            assert np.all(np.diff(original.sample_frames(total, 30.0, {"num_frames": count}).indices) > 0)
    assert len(original.sample_frames(300, 30.0, {}).indices) == 32
    assert len(original.sample_frames(300, 30.0, {"fps": 2}).indices) == 20
    assert len(original.sample_frames(300, 30.0, {"fps": 0.01}).indices) == 1


def test_stop_tokens_come_from_the_tokenizer(processor: InternVLProcessor) -> None:
    assert processor.stop_token_ids == (IDS["<|im_end|>"],)


# ------------------------------------------------------------------------------------------------- wrong folders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select_layer": -2}, "select_layer -2 is not supported"),
        ({"ps_version": "v3"}, "ps_version 'v3'"),
        ({"force_image_size": 50}, "tiles of 50 pixels"),
        ({"max_dynamic_patch": 1000}, "max_dynamic_patch must be an integer from 1 to 128"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "hidden_act 'quick_gelu'"),
        ({"vision_config": {"norm_type": "batch_norm"}}, "norm_type 'batch_norm'"),
        ({"vision_config": {"num_attention_heads": 5}}, "num_attention_heads 5"),
        ({"vision_config": {"image_size": [56, 28]}}, "image_size must be one positive number"),
        ({"force_image_size": -1}, "the size of a tile must be one positive number of pixels, got -1"),
    ],
)
def test_wrong_config(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tiny.write_checkpoint(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    part = {**settings["vision_config"], **change.pop("vision_config", {})}
    (folder / "config.json").write_text(json.dumps({**settings, **change, "vision_config": part}))
    with pytest.raises(ConfigError, match=message) as caught:
        make(folder)
    assert "\n" not in str(caught.value)


def test_tokenizer_without_the_tokens(tmp_path: Path) -> None:
    from tests import tiny as qwen

    folder = tiny.write_checkpoint(tmp_path)
    (folder / "tokenizer.json").write_text(qwen.tokenizer_json())
    with pytest.raises(ConfigError, match="the tokenizer has no <img>"):
        make(folder)
