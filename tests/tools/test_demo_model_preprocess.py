"""What the demonstration model is fed: pixels, positions, masks and windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tools.demo_model.batches import pack, training_batch
from tools.demo_model.checkpoint import model_config, new_model
from tools.demo_model.forward import answer_logits, hidden_states
from tools.demo_model.preprocess import (
    MAX_PIXELS,
    MIN_PIXELS,
    Patches,
    frames_to_patches,
    image_to_patches,
    sample_indices,
    smart_resize,
)
from tools.demo_model.sequences import Media, chat_row, grove_row, tree_row
from tools.demo_model.windows import grouped_windows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(Path(__file__).resolve().parents[2] / "trifocal/demo/model/tokenizer.json"))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height"), [(112, 112), (60, 40), (300, 170), (97, 201), (640, 480)])
def test_pixels_equal_the_reference_processor(width: int, height: int) -> None:
    image = noise(width, height)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS})
    expected = processor(images=[image], return_tensors="np")
    patches = image_to_patches(image)
    assert list(patches.grid) == expected["image_grid_thw"][0].tolist()
    np.testing.assert_allclose(patches.rows, expected["pixel_values"], atol=1e-5)


def test_a_clip_of_two_equal_frames_is_the_picture() -> None:
    still, moving = noise(84, 112, 1), noise(84, 112, 2)
    clip = frames_to_patches([still, still, moving])
    assert clip.grid == (2, 8, 6)
    np.testing.assert_array_equal(clip.rows[:48], image_to_patches(still).rows)
    np.testing.assert_array_equal(clip.rows[48:], image_to_patches(moving).rows)


def test_any_picture_lands_in_the_trained_range() -> None:
    for width, height in ((1920, 1080), (20, 20), (30, 55), (168, 168), (4000, 2100)):
        h, w = smart_resize(height, width)
        assert h % 28 == 0
        assert w % 28 == 0
        assert MIN_PIXELS <= h * w <= MAX_PIXELS


def test_frames_are_sampled_twice_a_second() -> None:
    assert sample_indices(20, 10.0) == [0, 6, 13, 19]
    assert sample_indices(30, 10.0) == [0, 6, 12, 17, 23, 29]
    assert sample_indices(90, 30.0) == [0, 18, 36, 53, 71, 89]
    assert sample_indices(3, 30.0) == [0, 2]


def test_positions_after_a_clip_follow_the_original_rule() -> None:
    """Golden values of the original implementation: t=4, 2x2 merged tokens, clip starts at 3."""
    patches = Patches(np.zeros((64, 1176), np.float32), (4, 4, 4))
    for seconds, expected in ((1.0, [3, 5, 7, 9]), (0.5, [3, 4, 5, 6]), (1.5, [3, 6, 9, 12])):
        positions = Media(patches, seconds).positions(3)
        assert [t for t, _, _ in positions[::4]] == expected
        assert [(h, w) for _, h, w in positions[:4]] == [(3, 3), (3, 4), (4, 3), (4, 4)]


def test_text_continues_after_the_highest_position(tokenizer: Tokenizer) -> None:
    patches = Patches(np.zeros((64, 1176), np.float32), (4, 4, 4))
    row = chat_row(tokenizer, [([Media(patches, 1.0), "What is this?"], "Up.")])
    first = row.ids.index(tokenizer.token_to_id("<|video_pad|>"))
    assert row.positions[first][0] == first
    assert row.positions[first + 16] == (first + 7,) * 3  # T of the last grid is first + 6


def test_branches_are_single_turn_chats(tokenizer: Tokenizer) -> None:
    """Every exchange of a tree row gets the logits it would get alone."""
    torch.manual_seed(0)
    model = new_model(model_config(tokenizer)).eval()
    media = [Media(image_to_patches(noise(120, 90)))]
    pairs = [("What shape is this?", "A star."), ("Is there a circle?", "No."), ("What is this?", "A heart.")]
    with torch.no_grad():
        together, _, _ = answer_logits(model, pack([tree_row(tokenizer, media, pairs)], []))
        alone = [answer_logits(model, pack([chat_row(tokenizer, [([*media, q], a)])], []))[0] for q, a in pairs]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_branches_that_ask_before_the_picture_are_single_turn_chats(tokenizer: Tokenizer) -> None:
    """As above for a grove row; another picture comes after it, whose tokens must not be mixed up with the first's."""
    torch.manual_seed(0)
    model = new_model(model_config(tokenizer)).eval()
    media, other = [Media(image_to_patches(noise(120, 90)))], [Media(image_to_patches(noise(90, 130)))]
    pairs = [("What shape is this?", "A star."), ("Is there a circle?", "No."), ("What is this?", "A heart.")]
    rows = [grove_row(tokenizer, media, pairs), chat_row(tokenizer, [([*other, "What is this?"], "A cross.")])]
    with torch.no_grad():
        together, _, _ = answer_logits(model, pack(rows, []))
        alone = [answer_logits(model, pack([chat_row(tokenizer, [([q, *media], a)])], []))[0] for q, a in pairs]
        alone.append(answer_logits(model, pack(rows[1:], []))[0])
    assert len(pack(rows, []).grids) == 2
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_grouped_windows_equal_the_stock_attention(tokenizer: Tokenizer) -> None:
    """On a mixed training batch: pictures of many sizes, several images, clips."""
    torch.manual_seed(0)
    model = new_model(model_config(tokenizer)).eval()
    batch = training_batch(seed=5, step=5000, size=10, tokenizer=tokenizer)
    assert len({tuple(grid) for grid in batch.grids.tolist()}) > 3
    with torch.no_grad():
        stock, stock_features = hidden_states(model, batch)
        with grouped_windows():
            grouped, grouped_features = hidden_states(model, batch)
    real = batch.labels >= 0
    torch.testing.assert_close(grouped_features, stock_features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grouped[real], stock[real], atol=1e-5, rtol=1e-4)


def test_a_training_batch_is_a_function_of_seed_and_step(tokenizer: Tokenizer) -> None:
    first, second, other = (training_batch(0, step, 6, tokenizer) for step in (700, 700, 701))
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.pixels, second.pixels)
    assert first.answers != other.answers
