"""Benchmark questions: seeded, unlike each other, of the shape that was asked for."""

from __future__ import annotations

import argparse
import base64
import io
import json
from dataclasses import replace

import pytest
from PIL import Image

from trifocal.bench.serve import chosen_workloads, configure_parser
from trifocal.bench.workload import PRESETS, Shape, make_questions, parse_size
from trifocal.cli.flags import Parser
from trifocal.errors import ConfigError

SHAPE = Shape(num_prompts=4, concurrency=2, input_words=7, output_tokens=5, num_images=2, image_size=(64, 48))


def options(*words: str) -> argparse.Namespace:
    parser = Parser(prog="bench serve")
    configure_parser(parser)
    return parser.parse_args(list(words))


def test_the_shape_is_kept() -> None:
    for question in make_questions(SHAPE, "seed"):
        *pictures, text = question.messages[0]["content"]
        assert len(text["text"].split()) == 7 and question.output_tokens == 5
        for picture in pictures:
            data = base64.b64decode(picture["image_url"]["url"].split(",")[1])
            assert Image.open(io.BytesIO(data)).size == (64, 48)
        assert len(pictures) == 2


def test_the_same_seed_asks_the_same_and_no_two_are_alike() -> None:
    first = [json.dumps(question.messages) for question in make_questions(SHAPE, "seed")]
    again = [json.dumps(question.messages) for question in make_questions(SHAPE, "seed")]
    other = [json.dumps(question.messages) for question in make_questions(SHAPE, "other")]
    assert first == again
    assert len({*first, *other}) == 2 * SHAPE.num_prompts


def test_sampled_questions_are_the_greedy_ones_with_the_fields_for_sampling() -> None:
    greedy, sampled = (make_questions(PRESETS[name], "seed", 2) for name in ("text1", "text1-sampled"))
    assert [one.messages for one in greedy] == [one.messages for one in sampled]
    assert all(one.sampling == {} for one in greedy)
    assert all(one.sampling == {"temperature": 0.7, "top_p": 0.8, "top_k": 20} for one in sampled)


def test_presets_and_changes_to_them() -> None:
    assert chosen_workloads(options("--preset", "all")) == PRESETS
    changed = chosen_workloads(options("--preset", "text16,image1", "--num-prompts", "2", "--image-size", "28"))
    assert list(changed) == ["text16", "image1"]
    assert changed["image1"] == replace(PRESETS["image1"], num_prompts=2, image_size=(28, 28))
    assert chosen_workloads(options("--concurrency", "3"))["custom"].concurrency == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "text3"], "unknown 'text3'"),
        (["--num-prompts", "0"], "num_prompts must be at least 1"),
        (["--num-images", "-1"], "--num-images must be at least 0"),
        (["--request-rate", "0"], "--request-rate above 0"),
        (["--image-size", "axb"], "--image-size: expected WIDTHxHEIGHT"),
    ],
)
def test_senseless_numbers_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen_workloads(options(*words))


def test_sizes() -> None:
    assert parse_size("448x336") == (448, 336)
    assert parse_size("28") == (28, 28)
