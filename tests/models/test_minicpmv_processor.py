"""The processor of MiniCPM-V: sizes and slices byte for byte, prompts token for token, options, clips."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from tests import oracle_minicpmv as oracle
from tests import tiny_minicpmv as tiny
from trifocal.config.engine import EngineArgs, resolve
from trifocal.engine.output import expand
from trifocal.errors import ConfigError, RequestError
from trifocal.media.media import Image, Video
from trifocal.model_spec import ModelSpec
from trifocal.models.minicpmv.options import MediaOptions
from trifocal.models.minicpmv.processor import MiniCPMVProcessor
from trifocal.models.minicpmv.slicing import Slicer
from trifocal.prompt.builder import PromptBuilder
from trifocal.sampling_params import SamplingParams
from trifocal.tokenizer import load_tokenizer

RELEASED = Slicer(448, 14)
IDS = tiny.token_ids()
UNK = "<unk>" * tiny.QUERIES
TILE, SLICE = f"<image>{UNK}</image>", f"<slice>{UNK}</slice>"


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=tiny.VERSIONS)
def builder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PromptBuilder]:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("minicpmv"), request.param)
    builder = PromptBuilder(resolve(EngineArgs(model=str(folder))))
    yield builder
    builder.close()


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> MiniCPMVProcessor:
    """Version 2.6."""
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("minicpmv"))
    return MiniCPMVProcessor(ModelSpec.from_checkpoint(str(folder)), load_tokenizer(str(folder)))


# ------------------------------------------------------------------------------------------------- slices


def assert_slices_equal(slicer: Slicer, pixels: NDArray[np.uint8], most: int) -> None:
    """Patch rows put together again are the reference's crops, byte for byte."""
    height, width, _ = pixels.shape
    plan = slicer.plan(width, height, most)
    rows, start = slicer.cut(pixels, *plan.cuts), 0
    tiles = oracle.cut(PIL.Image.fromarray(pixels), slicer.resolution, most)
    assert len(tiles) == 1 + plan.num_slices
    for tile in tiles:
        h, w = tile.height // 14, tile.width // 14
        patches = rows[start : start + h * w].reshape(h, w, 3, 14, 14)
        image = patches.transpose(0, 3, 1, 4, 2).reshape(h * 14, w * 14, 3)
        np.testing.assert_array_equal(image, np.asarray(tile))
        start += h * w
    assert start == len(rows)


@pytest.mark.parametrize(
    ("size", "grid", "overview", "slice_size", "tokens"),
    [
        ((448, 448), (0, 0), (448, 448), (0, 0), 64),
        ((512, 512), (1, 2), (448, 448), (630, 322), 192),
        ((640, 480), (2, 1), (518, 392), (364, 546), 192),
        ((1280, 720), (3, 2), (602, 336), (490, 406), 448),
        ((1920, 1080), (4, 2), (602, 336), (420, 476), 576),
        ((2000, 300), (4, 1), (1148, 168), (574, 350), 320),
        ((4032, 3024), (3, 3), (518, 392), (518, 392), 640),
        ((500, 333), (0, 0), (546, 364), (0, 0), 64),
    ],
)
def test_released_sizes_byte_for_byte(
    size: tuple[int, int], grid: tuple[int, int], overview: tuple[int, int], slice_size: tuple[int, int], tokens: int
) -> None:
    """As released: slices of about 448 x 448 pixels, 9 at most, 64 tokens each."""
    plan = RELEASED.plan(*size, 9)
    assert (plan.grid, plan.overview, plan.slice_size) == (grid, overview, slice_size)
    assert 64 * (1 + plan.num_slices) == tokens
    assert_slices_equal(RELEASED, noise(*size), 9)


def test_sizes_are_those_of_the_formula() -> None:
    rng = random.Random(4)
    for _ in range(2000):
        width, height = (int(2 ** rng.uniform(0, 13)) for _ in range(2))
        most = rng.choice([1, 2, 5, 9, 9, 16])
        plan, grid = RELEASED.plan(width, height, most), oracle.grid_for(width, height, 448, most)
        assert plan.grid == (grid or (0, 0))
        assert plan.overview == oracle.fit(width, height, 448, grow=grid is None)


def test_slices_byte_for_byte() -> None:
    """200 random sizes at a small scale."""
    rng, slicer = random.Random(11), Slicer(56, 14)
    for index in range(200):
        width, height = (int(2 ** rng.uniform(1, 8.2)) for _ in range(2))
        assert_slices_equal(slicer, noise(width, height, index), rng.choice([1, 2, 4, 9]))


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (30000, 1), (1_000_000, 1), (13, 7)])
def test_odd_shapes_do_not_fail(size: tuple[int, int]) -> None:
    plan = RELEASED.plan(*size, 9)
    assert plan.num_slices <= 9 and min(plan.overview) >= 14 and all(side % 14 == 0 for side in plan.overview)


# ------------------------------------------------------------------------------------------------- prompts


def picture_text(version: tuple[int, int], columns: int, rows: int, number: int) -> str:
    """What stands for a picture, as text."""
    if version == (2, 6):
        text = f"<image_id>{number}</image_id>{TILE}"
        return text + "\n".join([SLICE * columns] * rows)
    return TILE + ("<slice>" + "\n".join([TILE * columns] * rows) + "</slice>" if rows else "")


def test_raw_prompt_is_tokenised_as_the_expanded_text(builder: PromptBuilder) -> None:
    """As OpenBMB do it: placeholders are replaced in the text, and the whole is tokenised then."""
    assert isinstance(builder.processor, MiniCPMVProcessor)
    version = builder.processor._config.version
    images = [noise(330, 200, 1), noise(80, 140, 2)]
    text = "Look at (<image>./</image>)\nand at this(<image>./</image>): what?"
    prompt = builder.build(text, {"image": images})
    expanded = text
    for number, shape in enumerate([(3, 2), (0, 0)]):
        expanded = expanded.replace("(<image>./</image>)", picture_text(version, *shape, number), 1)
    assert prompt.token_ids == builder.tokenizer.encode(expanded)
    assert (prompt.positions, prompt.position_delta, prompt.text) == (None, 0, text)
    first, second = prompt.media
    assert second.grid == (11, 6, 1) and first.grid[2::3] == (1, 6)
    for item, num_tiles in ((first, 7), (second, 1)):
        span = item.span
        inside = prompt.token_ids[span.offset : span.end]
        assert inside[0] == IDS["<image>"] and span.num_embeds == num_tiles * tiny.QUERIES
        assert span.is_embed == tuple(token_id == IDS["<unk>"] for token_id in inside)
        ends = (IDS["</image>"],) if num_tiles == 1 else (IDS["</slice>"],)
        assert inside[-1] in ends
        triples = np.array(item.grid).reshape(-1, 3)
        assert np.asarray(item.pixels).shape == (triples.prod(axis=1).sum(), 588)


def test_number_of_tokens_is_known_beforehand(processor: MiniCPMVProcessor) -> None:
    for width, height in [(330, 200), (90, 100), (500, 60)]:
        item = processor.build([IDS["<image>"]], [Image(noise(width, height))], {}).media[0]
        plan = processor.plan("image", (1, height, width), {})
        assert (plan.num_tokens, plan.num_embeds) == (item.span.length, item.span.num_embeds)
        clip = Video(np.stack([noise(width, height)] * 3), 1.0)
        item = processor.build([IDS["<slice>"]], [clip], {}).media[0]
        plan = processor.plan("video", (3, height, width), {})
        assert plan.num_frames == 3 and plan.decoded == (plan.resized if plan.overview is None else plan.size)
        assert (plan.num_tokens, plan.num_embeds) == (item.span.length, item.span.num_embeds)


def test_chat_keeps_the_order_of_parts_and_guards_users(builder: PromptBuilder) -> None:
    content = [
        {"type": "text", "text": "First </image> <image>"},
        {"type": "image_pil", "image_pil": noise(90, 100)},
        {"type": "text", "text": "(<image>./</image>) what?"},
    ]
    prompt = builder.chat_sync([{"role": "user", "content": content}])
    assert prompt.text is not None
    assert "First </image> <image>\n<image>\n(<image>./</image>) what?" in prompt.text
    assert prompt.token_ids.count(IDS["<image>"]) == len(prompt.media) == 1
    before = prompt.token_ids[: prompt.media[0].span.offset]
    assert "First </image> <image>" in builder.tokenizer.decode(before)


def test_chat_of_2_0_without_a_template(builder: PromptBuilder) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "x"},
    ]
    text = builder.render(turns).text
    assert (text == "<s><用户>hi<AI>ho<用户>x<AI>") == (builder.config.model.spec.hf_config["version"] == "2.0")


def test_answers_stop_by_the_version_s_tokens(builder: PromptBuilder) -> None:
    assert isinstance(builder.processor, MiniCPMVProcessor)
    names = {(2, 0): ["</s>"], (2, 5): ["<|eot_id|>", "<|end_of_text|>"], (2, 6): ["<|im_end|>", "<|endoftext|>"]}
    expected = [IDS[name] for name in names[builder.processor._config.version]]
    prompt = builder.build("hi")
    assert sorted(prompt.stop_token_ids) == sorted(expected)
    for ignore_eos in (False, True):
        params = SamplingParams(stop_token_ids=[3], ignore_eos=ignore_eos)
        request = expand(
            "r", prompt, params, eos_ids=[1], max_model_len=99, rng=random.Random(0), tokenizer=builder.tokenizer
        )[0]
        assert request.stop_token_ids == ({3} if ignore_eos else {1, 3, *expected})


def test_counts_must_match(processor: MiniCPMVProcessor) -> None:
    with pytest.raises(RequestError, match=r"2 image placeholders .* but 1 image came") as caught:
        processor.build([IDS["<image>"]] * 2, [Image(noise(28, 28))], {})
    assert caught.value.param == "messages"
    with pytest.raises(RequestError, match=r"0 video placeholders .* but 1 video came"):
        processor.build([5], [Video(noise(28, 28)[None], 1.0)], {})
    with pytest.raises(RequestError, match="expanded here"):
        processor.build([IDS["<image>"], IDS["<unk>"], IDS["</image>"]], [Image(noise(28, 28))], {})


# ------------------------------------------------------------------------------------------------- options


def test_options_change_slices_and_numbers(processor: MiniCPMVProcessor) -> None:
    def build(**options: Any) -> list[int]:
        return processor.build([IDS["<image>"]], [Image(noise(330, 200))], options).token_ids

    assert build().count(IDS["<slice>"]) == 6
    assert build(max_slice_nums=2).count(IDS["<slice>"]) == 2
    assert build(max_slice_nums=1).count(IDS["<slice>"]) == 0
    assert IDS["<image_id>"] in build() and build(use_image_id=False)[0] == IDS["<image>"]


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 3}, {"max_slice_nums": 0}, {"max_slice_nums": "9"}, {"max_slice_nums": True}, {"use_image_id": 1},
        {"fps": 0}, {"fps": float("nan")}, {"fps": "fast"}, {"num_frames": 2.5}, {"num_frames": -1},
    ],
)  # fmt: skip
def test_bad_options_are_refused(processor: MiniCPMVProcessor, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        processor.check_options(options)
    assert caught.value.param == "mm_processor_kwargs"


def test_image_numbers_need_their_tokens(processor: MiniCPMVProcessor) -> None:
    settings = {**processor.spec.preprocessor_config, "im_id_start": "<nothing>"}
    old = MiniCPMVProcessor(replace(processor.spec, preprocessor_config=settings), processor.tokenizer)
    with pytest.raises(RequestError, match="use_image_id"):
        old.check_options({"use_image_id": True})
    with pytest.raises(ConfigError, match="<nothing>"):
        settings["im_start"] = "<nothing>"
        MiniCPMVProcessor(replace(processor.spec, preprocessor_config=settings), processor.tokenizer)


# ------------------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize(
    ("total", "fps", "options", "expected"),
    [
        (90, 30.0, {}, [0, 30, 60]),
        (90, 29.97, {}, [0, 30, 60]),
        (10, 30.0, {}, [0]),
        (5, 0.5, {}, [0, 1, 2, 3, 4]),
        (90, 30.0, {"fps": 2}, [0, 15, 30, 45, 60, 75]),
        (90, 30.0, {"num_frames": 3}, [15, 45, 75]),
        (2, 30.0, {"num_frames": 3}, [0, 1]),
        (3, 30.0, {"fps": 1e-9}, [0]),
    ],
)
def test_sampled_frames(
    processor: MiniCPMVProcessor, total: int, fps: float, options: dict[str, Any], expected: list[int]
) -> None:
    sample = processor.sample_frames(total, fps, options)
    assert sample.indices.tolist() == expected
    assert sample.fps == pytest.approx(len(expected) / total * fps)


def test_long_clip_is_64_frames_from_the_middles() -> None:
    indices = MediaOptions().frame_indices(30 * 600, 30.0)
    assert len(indices) == 64 and indices[:3].tolist() == [30 * 4, 30 * 14, 30 * 23] and indices[-1] == 30 * 595


def test_clip_is_one_item_of_pictures_in_lines(builder: PromptBuilder) -> None:
    assert isinstance(builder.processor, MiniCPMVProcessor)
    frames = np.stack([noise(200, 120, seed) for seed in range(3)])
    prompt = builder.build("See (<video>./</video>)!", {"video": [frames]})
    each = picture_text(builder.processor._config.version, 2, 1, 0).removeprefix("<image_id>0</image_id>")
    assert prompt.token_ids == builder.tokenizer.encode(f"See {each}\n{each}\n{each}!")
    (item,) = prompt.media
    assert item.modality == "video" and item.span.num_embeds == 9 * tiny.QUERIES
    assert item.grid[2::3] == (1, 2) * 3
    small = builder.build("(<video>./</video>)", {"video": [frames]}, {"max_slice_nums": 1}).media[0]
    assert small.grid[2:] == (3,)


def test_hash_covers_pixels_shape_and_kind(processor: MiniCPMVProcessor) -> None:
    pixels = noise(112, 112)
    changed = pixels.copy()
    changed[5, 5, 0] ^= 255
    image, clip = IDS["<image>"], IDS["<slice>"]
    items = [processor.build([image], [Image(each)], {}).media[0] for each in (pixels, changed, pixels.copy())]
    items.append(processor.build([clip], [Video(pixels[None], 1.0)], {}).media[0])
    hashes = [item.content_hash for item in items]
    assert hashes[0] == hashes[2] and len(set(hashes)) == 3
    wide, tall = np.zeros((56, 112, 3), np.uint8), np.zeros((112, 56, 3), np.uint8)
    pair = {processor.build([image], [Image(each)], {}).media[0].content_hash for each in (wide, tall)}
    assert len(pair) == 2  # the same bytes, another grid


# ------------------------------------------------------------------------------------------------- configuration


def test_versions_told_by_their_fields(tmp_path: Path) -> None:
    """The file of 2.0 has no version and names a timm tower; everything else has defaults."""
    folder = tiny.write_checkpoint(tmp_path, "2.0")
    settings = json.loads((folder / "config.json").read_text())
    for name in ("version", "vision_config", "query_num", "scale_resolution", "drop_vision_last_layer"):
        del settings[name]
    (folder / "config.json").write_text(json.dumps(settings))
    config = MiniCPMVProcessor(ModelSpec.from_checkpoint(str(folder)), load_tokenizer(str(folder)))._config
    assert (config.version, config.use_image_id) == ((2, 0), False)
    assert (config.num_queries, config.scale_resolution) == (64, 448)
    vision = config.vision
    assert (vision.num_layers, vision.table_side, vision.hidden_size, vision.intermediate_size) == (26, 27, 1152, 4304)


def test_runs_without_torch() -> None:
    code = (
        "import sys, trifocal.models.minicpmv.processor\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
