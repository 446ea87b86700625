"""The tokenizer against transformers' fast tokenizer, and the rule that user text never becomes a control token."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from tests import tiny
from trifocal.errors import ConfigError
from trifocal.prompt.template import ChatTemplate
from trifocal.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "", " ", "\n", "hello", " hello  world ", "What is 12345?\r\n\n  x", "naïve café", "e\u0301 combining",
    "漢字 と かな", "🦊🦊 fox \u200d", "a\u00a0b", "tab\tend ", "<|", "<im_end>", "|>", "<|im_end", "x" * 300,
    "don't I'LL we've", "\ue000private\uf8ff", "<|im_start |>", "<||im_end||>", "'''code'''\n\n\tpass",
]  # fmt: skip
CONTROLS = list(tiny.SPECIAL)


def make(**changes: Any) -> Tokenizer:
    """The tiny tokenizer, with entries of tokenizer_config.json."""
    config = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, **changes}
    return Tokenizer(tokenizers.Tokenizer.from_str(tiny.tokenizer_json()), config)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Ours."""
    return make()


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    """transformers'."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(tiny.tokenizer_json()))
    fast.chat_template = tiny.CHAT_TEMPLATE
    return fast


def chat_ids(tokenizer: Tokenizer, *texts: str) -> list[int]:
    """A chat of `texts`, user and assistant in turn, as the front half renders it."""
    guard = tokenizer.guard()
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": guard.hide(text)} for index, text in enumerate(texts)
    ]
    template = ChatTemplate(tiny.CHAT_TEMPLATE, {})
    rendered = template.render(messages, add_generation_prompt=True, max_chars=1 << 20, extra={})
    return tokenizer.encode_chat(rendered, guard.protected)


# --------------------------------------------------------------------------------------------- plain use


@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi <|im_end|>\n", "a<|image_pad|><|image_pad|> b"])
def test_encode_and_decode_are_those_of_transformers(
    tokenizer: Tokenizer, reference: PreTrainedTokenizerFast, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)


def test_ids_and_names(tokenizer: Tokenizer) -> None:
    ids = tiny.token_ids()
    assert tokenizer.eos_token_id == ids["<|im_end|>"]
    assert tokenizer.bos_token_id is None
    assert tokenizer.special_ids == set(ids.values())
    assert tokenizer.vocab_size == max(ids.values()) + 1
    assert tokenizer.id_to_token(ids["<|im_end|>"]) == "<|im_end|>"
    assert tokenizer.token_to_id("<|nonsense|>") is None
    assert tokenizer.id_to_token(tokenizer.vocab_size) is None
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_decode_leaves_out_ids_beyond_the_vocabulary(tokenizer: Tokenizer) -> None:
    """Models have more logits than the tokenizer has tokens."""
    assert tokenizer.decode([tiny.VOCAB - 1, *tokenizer.encode("ok"), 10**6]) == "ok"


@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_plain(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == tokenizer.decode(ids).encode()


def test_token_bytes_of_odd_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tiny.token_ids()["<|im_end|>"]) == b"<|im_end|>"
    assert tokenizer.token_bytes(10**6) == b""
    fox = tokenizer.encode_plain("🦊")
    assert len(fox) > 1 and tokenizer.token_bytes(fox[0])[0] == 0xF0  # half a character has bytes, too


def test_token_bytes_of_sentencepiece_tokens() -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "▁hi": 2, "hi": 3}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = Tokenizer(backend, {})
    assert [pieces.token_bytes(token_id) for token_id in (1, 2, 3)] == [b"\n", b" hi", b"hi"]


def test_truncation_and_padding_of_the_file_are_off() -> None:
    backend = tokenizers.Tokenizer.from_str(tiny.tokenizer_json())
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    assert Tokenizer(backend, {}).encode("a b c d") == make().encode("a b c d")


# --------------------------------------------------------------------------------------------- control tokens


@pytest.mark.parametrize("text", TEXTS)
def test_chat_is_tokenised_as_a_whole(tokenizer: Tokenizer, reference: PreTrainedTokenizerFast, text: str) -> None:
    """Byte pairs across template and user text are those of the whole rendered prompt."""
    texts = [text, f"{text}{text}", f"\n{text}"]
    messages = [{"role": ("user", "assistant")[index % 2], "content": item} for index, item in enumerate(texts)]
    encoded = reference.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert chat_ids(tokenizer, *texts) == encoded["input_ids"]


@pytest.mark.parametrize("control", CONTROLS)
def test_control_literals_of_users_stay_text(tokenizer: Tokenizer, control: str) -> None:
    harmless = chat_ids(tokenizer, "x y")
    for text in (control, f"a{control}b", f"{control}{control}", f" {control}\n"):
        ids = chat_ids(tokenizer, text)
        specials = [token_id for token_id in ids if token_id in tokenizer.special_ids]
        assert specials == [token_id for token_id in harmless if token_id in tokenizer.special_ids]
        assert text in tokenizer.decode(ids, skip_special_tokens=False)
        assert not set(tokenizer.encode_plain(text)) & tokenizer.special_ids
        assert tokenizer.decode(tokenizer.encode_plain(text)) == text


def test_text_around_a_literal_is_tokenised_with_it(tokenizer: Tokenizer) -> None:
    """The literal is restored before tokenising: the ids are those of a tokenizer that has no such token."""
    bare = json.loads(tiny.tokenizer_json())
    bare["added_tokens"] = []
    without = tokenizers.Tokenizer.from_str(json.dumps(bare))
    for text in ("a <|im_end|> b", "<|im_end|>\n\n", "see<|image_pad|>"):
        assert tokenizer.encode_plain(text) == without.encode(text).ids


def test_parts_cannot_join_to_a_control_token(tokenizer: Tokenizer) -> None:
    """Two parts of one message stand next to each other in the prompt."""
    guard = tokenizer.guard()
    rendered = guard.hide("<|im_") + guard.hide("end|>") + guard.hide("<") + guard.hide("|im_end|>")
    ids = tokenizer.encode_chat(rendered, guard.protected)
    assert not set(ids) & tokenizer.special_ids
    assert tokenizer.decode(ids) == guard.reveal(rendered) == "<|im_end|><|im_end|>"


def test_sentinels_survive_what_templates_do_to_text(tokenizer: Tokenizer) -> None:
    guard = tokenizer.guard()
    template = ChatTemplate("{{ messages[0].content | trim | upper }}{{ messages[0].content | tojson }}", {})
    messages = [{"role": "user", "content": guard.hide(" <|im_end|> ")}]
    rendered = template.render(messages, add_generation_prompt=False, max_chars=1000, extra={})
    assert guard.reveal(rendered) == '<|im_end|>" <|im_end|> "'


def test_hide_all_reaches_every_string(tokenizer: Tokenizer) -> None:
    guard = tokenizer.guard()
    value = {"<|im_end|>": ["<|im_end|>", {"deep": ("<|im_end|>", 3, None, True)}]}
    hidden = guard.hide_all(value)
    assert "<|im_end|>" not in str(hidden)
    assert guard.reveal(json.dumps(hidden, ensure_ascii=False)).count("<|im_end|>") == 3
    assert hidden.popitem()[1][1]["deep"][1:] == [3, None, True]


def test_sentinels_of_another_rendering_mean_nothing(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.guard(), tokenizer.guard()
    stolen = first.hide("<|im_end|>")
    ids = tokenizer.encode_chat(second.hide(stolen), second.protected)
    assert not set(ids) & tokenizer.special_ids
    assert tokenizer.decode(ids) == stolen


def with_added(*added: AddedToken, special: bool) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """The tiny tokenizer with more added tokens, ours and a plain copy."""
    backend = tokenizers.Tokenizer.from_str(tiny.tokenizer_json())
    (backend.add_special_tokens if special else backend.add_tokens)(list(added))
    return Tokenizer(backend, {}), tokenizers.Tokenizer.from_str(backend.to_str())


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<x>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("<x>", rstrip=True, normalized=True),
        AddedToken("<x>", single_word=True, normalized=False),
        AddedToken("<x>", normalized=False),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_flags_of_added_tokens_hold_in_templates(token: AddedToken, special: bool) -> None:
    ours, plain = with_added(token, special=special)
    for rendered in ("a  <x>  b", "<x>", "a<x>b", "<x><x> \n <x>", "a.<x>.b", "e\u0301 <x> e\u0301"):
        assert ours.encode_chat(rendered, {}) == plain.encode(rendered, add_special_tokens=False).ids
    assert not set(ours.encode_plain("a <x> b")) & {plain.token_to_id("<x>")}


def test_added_words_stay_words_of_users() -> None:
    """A fine-tuned vocabulary ("chlorophyll") is no control token: in user text, too, it is one token."""
    ours, plain = with_added(AddedToken("chlorophyll", normalized=False), AddedToken("    "), special=False)
    for text in ("what is chlorophyll?", "    x", "chlorophyllous"):
        assert ours.encode_plain(text) == plain.encode(text).ids
        assert chat_ids(ours, text)[: -len("assistant")].count(plain.token_to_id("chlorophyll")) <= 1
    assert plain.token_to_id("chlorophyll") in ours.encode_plain("chlorophyll")


def test_longer_tokens_win_over_their_beginnings() -> None:
    ours, plain = with_added(AddedToken("<x>", normalized=False), AddedToken("<x>y", normalized=False), special=True)
    assert (
        ours.encode_chat("<x>y<x>", {})
        == plain.encode("<x>y<x>").ids
        == plain.encode("<x>y").ids + [plain.token_to_id("<x>")]
    )


def test_prefix_of_sentencepiece_texts_only_at_the_start() -> None:
    """A run after a control token is no new text: with Metaspace "first" it takes no space of its own."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "▁", "a", "b", "▁a", "▁b"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens(["<s>"])
    ours = Tokenizer(backend, {})
    for text in ("a<s>b", "<s>a", "a b<s> a"):
        assert ours.encode_chat(text, {}) == backend.encode(text).ids


def test_many_threads_at_once(tokenizer: Tokenizer) -> None:
    texts = [f"{text} <|im_end|> {index}" for index, text in enumerate(TEXTS * 2)]
    expected = [chat_ids(tokenizer, text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: chat_ids(tokenizer, text), texts)) == expected


# --------------------------------------------------------------------------------------------- folders


def write(folder: Path, **files: Any) -> str:
    """A tokenizer folder; `chat_template_jinja="…"` writes chat_template.jinja, a dict writes JSON."""
    (folder / "tokenizer.json").write_text(tiny.tokenizer_json(), encoding="utf-8")
    for name, content in files.items():
        if isinstance(content, str):
            (folder / f"{name.removesuffix('_jinja')}.jinja").write_text(content, encoding="utf-8")
        else:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def test_chat_template_order(tmp_path: Path) -> None:
    assert load_tokenizer(write(tmp_path)).chat_template is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert load_tokenizer(write(tmp_path, tokenizer_config={"chat_template": named})).chat_template == "D"
    assert load_tokenizer(write(tmp_path, tokenizer_config={"chat_template": "C"})).chat_template == "C"
    assert load_tokenizer(write(tmp_path, chat_template={"chat_template": "B"})).chat_template == "B"
    assert load_tokenizer(write(tmp_path, chat_template_jinja="A")).chat_template == "A"


def test_tokens_of_tokenizer_config_are_added(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    following = max(tiny.token_ids().values()) + 1
    listed = {str(following): {"content": "<new>", "special": True}, "0": {"content": "<|im_end|>"}}
    added = load_tokenizer(write(tmp_path, tokenizer_config={"added_tokens_decoder": listed}))
    assert added.encode("<new>") == [following] and following in added.special_ids
    assert not caplog.records
    listed = {"9999": {"content": "<new>"}}
    load_tokenizer(write(tmp_path, tokenizer_config={"added_tokens_decoder": listed}))
    assert "9999" in caplog.text


def test_vocab_and_merges_of_qwen2(tmp_path: Path) -> None:
    """What InternVL's folders over Qwen2 hold instead of tokenizer.json, read as transformers reads it."""
    source = tokenizers.Tokenizer.from_str(tiny.tokenizer_json())
    source.model.save(str(tmp_path))
    size = source.get_vocab_size(with_added_tokens=False)
    entries = {
        str(size + index): {"content": name, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        for index, name in enumerate((*CONTROLS, "<img>"))
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": entries}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours, theirs = load_tokenizer(str(tmp_path)), Qwen2Tokenizer.from_pretrained(str(tmp_path))
    for text in (*TEXTS, *(f"{text}<|im_end|>{text} <img>" for text in TEXTS)):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids, False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.encode("<img>") == [size + len(CONTROLS)] and ours.eos_token_id == ours.token_to_id("<|im_end|>")
    assert ours.special_tokens["pad_token"] == "<|endoftext|>"  # the class has it, no file says so
    (tmp_path / "vocab.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"vocab\.json cannot be read"):
        load_tokenizer(str(tmp_path))


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(str(tmp_path))
