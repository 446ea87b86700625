"""Pictures stay where the user put them, in every family and format; placeholders that users type stay words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests import tiny, tiny_internvl, tiny_minicpmv
from trifocal.cli.flags import Parser, add_flags, build
from trifocal.config.engine import EngineArgs, EngineConfig, resolve
from trifocal.errors import RequestError
from trifocal.prompt.builder import PromptBuilder

WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": tiny.write_checkpoint,
    "internvl, original": tiny_internvl.write_checkpoint,
    "internvl, native": lambda folder: tiny_internvl.write_checkpoint(folder, layout="native"),
    "minicpmv 2.6": tiny_minicpmv.write_checkpoint,
    "minicpmv 2.5": lambda folder: tiny_minicpmv.write_checkpoint(folder, "2.5"),
    "minicpmv 2.0": lambda folder: tiny_minicpmv.write_checkpoint(folder, "2.0"),
}
# A template for strings alone, as many a user brings with --chat-template.
STRINGS = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
TYPED = "<image> <video> <IMG_CONTEXT> <img></img> <|image_pad|> <|video_pad|> <|vision_start|><|image_pad|>" \
    "<|vision_end|> (<image>./</image>) (<video>./</video>) <slice>"  # fmt: skip
IMAGE, VIDEO = {"type": "image_url", "image_url": {"url": "i"}}, {"type": "video_url", "video_url": {"url": "v"}}
MESSAGE = {
    "role": "user",
    "content": [
        {"type": "text", "text": f"alpha {TYPED}"}, IMAGE, {"type": "text", "text": "beta"}, VIDEO, IMAGE,
        {"type": "text", "text": f"{TYPED} gamma"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=WRITERS)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = WRITERS[request.param](tmp_path_factory.mktemp("order") / "model")
    return resolve(EngineArgs(model=str(folder), device="cpu"))


@pytest.fixture(scope="module", params=["its template", "a template of strings"])
def builder(request: pytest.FixtureRequest, config: EngineConfig) -> Iterator[PromptBuilder]:
    with closing(PromptBuilder(config, chat_template=STRINGS if "strings" in request.param else None)) as made:
        yield made


def order(builder: PromptBuilder, message: dict[str, object] = MESSAGE) -> list[str]:
    """What comes after what: items by their placeholders' tokens, texts by their words."""
    rendered = builder.render([message], add_generation_prompt=False)
    tokenizer, ids = builder.tokenizer, rendered.token_ids
    marks = {
        tuple(tokenizer.encode(builder.processor.placeholder(modality), add_special_tokens=False)): modality
        for modality in ("image", "video")
    }
    found: list[str] = []
    words: list[int] = []
    while ids:
        mark = next((mark for mark in marks if tuple(ids[: len(mark)]) == mark), None)
        if mark is None:
            words.append(ids[0])
        if mark is not None or len(ids) == 1:
            text = tokenizer.decode(words, skip_special_tokens=False)
            found += [word for word in ("alpha", "beta", "gamma") if word in text]
            words = []
        if mark is not None:
            found.append(marks[mark])
        ids = ids[len(mark) if mark is not None else 1 :]
    assert [ref.source for ref in rendered.media] == ["i", "v", "i"][: len(rendered.media)]
    assert rendered.text.count(TYPED) == sum(TYPED in str(part) for part in message["content"])  # type: ignore[attr-defined]
    return found


def test_order_is_kept(builder: PromptBuilder) -> None:
    assert order(builder) == ["alpha", "image", "beta", "video", "image", "gamma"]


@pytest.mark.parametrize("flag", ["--interleave-mm-strings=false", "--no-interleave-mm-strings"])
def test_the_old_way(config: EngineConfig, flag: str) -> None:
    """Where a template takes strings; one that takes parts has the last word."""
    parser = Parser()
    add_flags(parser, EngineArgs)
    args = build(EngineArgs, parser.parse_args(["--model", config.model.spec.path, "--device", "cpu", flag]))
    with closing(PromptBuilder(resolve(args), chat_template=STRINGS)) as builder:
        assert order(builder) == ["image", "image", "video", "alpha", "beta", "gamma"]


def test_typed_placeholders_are_words(builder: PromptBuilder) -> None:
    assert order(builder, {"role": "user", "content": [{"type": "text", "text": f"alpha {TYPED}"}]}) == ["alpha"]


def test_in_raw_prompts_they_count(builder: PromptBuilder) -> None:
    """There they are the only way to say where a picture goes."""
    with pytest.raises(RequestError, match="1 image placeholder .* but 0 images came with it"):
        builder.build(f"a {builder.processor.placeholder('image')} b")
