"""`continue_final_message` cuts a chat right behind the last message's words, whatever its template writes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.models.families import ENTRIES
from trifocal.config.engine import EngineArgs, resolve
from trifocal.errors import RequestError
from trifocal.prompt.builder import PromptBuilder
from trifocal.prompt.rendering import Rendered

# One of each template.
FOLDERS = {
    "qwen2_5_vl": ("qwen2_5_vl", "flat"),
    "internvl-original": ("internvl-qwen2-300M", "original"),
    "internvl-native": ("internvl-qwen2-300M", "native"),
    "minicpmv-2.6": ("minicpmv-2.6", "released"),
    "minicpmv-2.5": ("minicpmv-2.5", "released"),
    "minicpmv-2.0": ("minicpmv-2.0", "released"),
}
# As the released template of MiniCPM-V 2.5 does it.
STRIPS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
QUESTION = {"role": "user", "content": "What is in the image?"}
OPTIONS = {"add_generation_prompt": False, "continue_final_message": True}
Render = Callable[..., Rendered]


@pytest.fixture(scope="module", params=[*FOLDERS, "strips"])
def render(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Render]:
    """Renders chats with the template of a family."""
    entry, spelling = FOLDERS.get(request.param, FOLDERS["qwen2_5_vl"])
    folder: Path = ENTRIES[entry].write(tmp_path_factory.mktemp("model") / "model", spelling)
    config = resolve(EngineArgs(model=str(folder), max_model_len=1024))
    builder = PromptBuilder(config, chat_template=STRIPS if request.param == "strips" else None)
    yield builder.render
    builder.close()


def tail_of(render: Render) -> str:
    """What the template writes behind an answer."""
    closed = render([QUESTION, {"role": "assistant", "content": "0123"}], add_generation_prompt=False).text
    return closed[closed.index("0123") + 4 :]


class Expected:
    """What a rendering must be: the text of an answer that the model has begun, with certain words."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._begun = render([QUESTION]).text
        self._strips = " x " not in render([{"role": "user", "content": " x "}]).text

    def check(self, words: str) -> None:
        shown = words.strip() if self._strips else words
        for content in (words, [{"type": "text", "text": words}]):
            rendered = self._render([QUESTION, {"role": "assistant", "content": content}], **OPTIONS)
            assert rendered.text == self._begun + shown


def test_words_of_the_letters_that_end_a_message(render: Render) -> None:
    """Every text of up to two letters, and longer ones at random, made of pieces of the end marker and all of it."""
    expected = Expected(render)
    letters = sorted({*tail_of(render), *"<|im_end|>", "\n", " "})
    for word in ("".join(pair) for length in (1, 2) for pair in product(letters, repeat=length)):
        if word.strip():
            expected.check(word)
    pieces = st.sampled_from([*letters, "im_end", "<|im_end|>", "|>\n", "<|eot_id|>", "end", "assistant\n", "<AI>"])

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(st.lists(pieces, min_size=1, max_size=5).map("".join).filter(str.strip))
    @example("end")
    @example("<|im_end|>")
    @example("<|im_end|>\n")
    def longer(words: str) -> None:
        expected.check(words)

    longer()


def test_no_control_token_comes_from_the_words(render: Render) -> None:
    begun = render([QUESTION]).token_ids
    plain = render([QUESTION, {"role": "assistant", "content": "x"}], **OPTIONS).token_ids
    marked = render([QUESTION, {"role": "assistant", "content": "x<|im_end|>"}], **OPTIONS).token_ids
    assert marked[: len(begun)] == plain[: len(begun)] == begun
    end = render([QUESTION, {"role": "assistant", "content": "x"}], add_generation_prompt=False).token_ids[len(plain) :]
    assert not set(end[:1]) & set(marked[len(begun) :])
    assert len(marked) > len(plain) + 1


def test_words_before_a_picture(render: Render) -> None:
    """All of the message stays, and the place of the picture with it."""
    content: list[Any] = [
        {"type": "text", "text": "Look: "},
        {"type": "image_url", "image_url": "http://never.fetched/"},
    ]
    rendered = render([QUESTION, {"role": "assistant", "content": content}], **OPTIONS)
    closed = render([QUESTION, {"role": "assistant", "content": content}], add_generation_prompt=False)
    assert rendered.text + tail_of(render) == closed.text


@pytest.mark.parametrize("content", [None, "", " \n", [], [{"type": "text", "text": " "}]])
def test_a_message_without_words_cannot_go_on(render: Render, content: Any) -> None:
    with pytest.raises(RequestError, match="needs text in the last message") as caught:
        render([QUESTION, {"role": "assistant", "content": content}], **OPTIONS)
    assert caught.value.param == "continue_final_message"
