"""Calibration samples: the built-in set and users' files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import ConfigError
from trifocal.quantize.drawing import drawn_pictures
from trifocal.quantize.inputs import build_prompts
from trifocal.quantize.samples import built_in, read_samples


def test_the_built_in_set() -> None:
    """The same at every call; texts, chats, pictures, and early on one of each."""
    samples = list(built_in())
    assert samples == list(built_in()) and len(samples) > 40
    first = samples[:6]
    assert any(each.text for each in first) and any("image_url" in str(each.messages) for each in first)
    pictures = [np.asarray(picture) for picture, _, _ in drawn_pictures()]
    assert len({each.tobytes() for each in pictures}) == len(pictures)


def test_pictures_are_a_part_of_the_prompts(tmp_path: Path) -> None:
    config = resolve(EngineArgs(model=str(tiny.write_checkpoint(tmp_path)), device="cpu"))
    prompts = build_prompts(config, built_in(), 1500)
    sizes = [len(prompt.token_ids) for prompt in prompts]
    assert 1400 < sum(sizes) <= 1500
    assert sum(bool(prompt.media) for prompt in prompts) >= 2


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    rows = [
        {"text": "As it stands."},
        {"text": "What colour?", "images": ["red.png"], "answer": "Red."},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    samples = read_samples(file)
    assert [each.text for each in samples] == ["As it stands.", None, None]
    config = resolve(EngineArgs(model=str(tiny.write_checkpoint(tmp_path / "model")), device="cpu"))
    prompts = build_prompts(config, samples, 500)
    assert [len(prompt.media) for prompt in prompts] == [0, 1, 0]
    assert prompts[1].text is not None and prompts[1].text.endswith(
        "What colour?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n"
    )
    (tmp_path / "mine.txt").write_text("One.\n\nTwo,\nstill two.\n\n\n")
    assert [each.text for each in read_samples(tmp_path / "mine.txt")] == ["One.", "Two,\nstill two."]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"mine\.jsonl, line 2 is not JSON"),
        ("[]", "line 2 must be an object with text"),
        ('{"texts": "a"}', "must be an object with text"),
        ('{"text": "a", "messages": []}', "must be an object with text"),
        ('{"text": 3}', "text and answer must be strings"),
        ('{"messages": "a"}', "messages must be a list of objects"),
        ('{"text": "a", "images": "b.png"}', "images must be a list of file names"),
        ('{"text": "a", "images": ["b.png"]}', "cannot read .*b.png: No such file"),
        ('{"text": "a", "images": ["b.exe"]}', "b.exe is not a picture"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_samples(tmp_path / "mine.jsonl")


def test_what_the_model_refuses_is_named(tmp_path: Path) -> None:
    config = resolve(EngineArgs(model=str(tiny.write_checkpoint(tmp_path)), device="cpu"))
    for line, message in (
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "line 1: .*type audio' are not supported|line 1",
        ),
        ({"messages": []}, "line 1"),
    ):
        (tmp_path / "mine.jsonl").write_text(json.dumps(line))
        with pytest.raises(ConfigError, match=message):
            build_prompts(config, read_samples(tmp_path / "mine.jsonl"), 500)
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "", "answer": "b " * 900}))
    with pytest.raises(ConfigError, match="every calibration sample is longer than 64 tokens"):
        build_prompts(config, [each for each in built_in() if "image_url" in str(each.messages)][:1], 64)
