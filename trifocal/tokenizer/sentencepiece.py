"""A sentencepiece BPE model (`tokenizer.model`) as a `tokenizers.Tokenizer`, without sentencepiece and its protobuf.

Read: the message `ModelProto` of sentencepiece_model.proto, of which four kinds of fields matter. Merges are not in the
file: sentencepiece joins the two neighbours whose joined piece has the best score, so every pair of pieces that makes
a piece is a merge, ranked by that score.

Known differences to sentencepiece, all of them shared with Hugging Face's conversions: of two places where *different*
pairs would make the same piece, it takes the left one, here the pair decides; a user-defined symbol starts a text of
its own (with a space in front where texts take one); a normalisation table, which the models of the families here do
not have, is applied by `tokenizers`, which is wrong for some characters with combining marks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from trifocal.errors import ConfigError

Prefix = Literal["never", "first", "always"]

_SPACE = "\u2581"
_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # ModelProto.SentencePiece.Type; 5 is UNUSED


@dataclass(frozen=True, slots=True)
class Piece:
    """An entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What of a model file decides how text becomes tokens."""

    pieces: list[Piece]
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes


def read_model(file: Path) -> SentencePieceModel:
    """Read a model file. Raises `ConfigError` for one that is broken, or of a kind that is not known here."""
    where = f"{file.parent.name}/{file.name}"
    try:
        fields = list(_fields(file.read_bytes()))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer, normalizer = (dict(_fields(dict(fields).get(number, b""))) for number in (2, 3))
    except (OSError, ValueError, TypeError, IndexError, struct.error) as error:
        raise ConfigError(f"{where} cannot be read as a sentencepiece model: {error}") from None
    kinds = {piece.kind for piece in pieces}
    wrong = (
        "it holds no pieces" if not pieces
        else "it is not a BPE model" if trainer.get(3, 1) != _BPE
        else "it has no unknown token" if _UNKNOWN not in kinds
        else "it has pieces of an unknown type" if kinds - {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
        else "it writes spaces in a way that is not supported" if not normalizer.get(5, 1) or trainer.get(24)
        else None
    )  # fmt: skip
    if wrong:
        raise ConfigError(f"{where} cannot be used: {wrong}. Save the fast tokenizer (tokenizer.json) in the folder")
    charsmap = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces=pieces,
        byte_fallback=bool(trainer.get(35)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _fields(message: object) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a protobuf message; groups do not occur."""
    if not isinstance(message, bytes):
        raise TypeError("a message was expected")
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 2, 5):
            length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise ValueError("it ends too early")
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than 64 bits at byte {at}")


def _piece(message: object) -> Piece:
    fields = dict(_fields(message))
    text, score, kind = fields.get(1, b""), fields.get(2, bytes(4)), fields.get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise TypeError("a piece has fields of the wrong type")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def convert(
    model: SentencePieceModel, listed: Mapping[int, AddedToken], *, prefix: Prefix, bos: str | None, eos: str | None
) -> tokenizers.Tokenizer:
    """The tokenizer of `model`. `listed`: the checkpoint's added tokens by id.

    A listed token may take over the id of a piece, which then is never matched by its old spelling: InternLM2's
    `<|im_start|>` lies on `[UNUSED_TOKEN_146]`. `prefix`: which texts take a space in front, the first of a prompt only
    or every one between two control tokens. `bos` and `eos` are put around a prompt.
    """
    spelled = {token_id: piece.text for token_id, piece in enumerate(model.pieces)}
    spelled |= {token_id: token.content for token_id, token in listed.items()}
    vocabulary = {text: token_id for token_id, text in spelled.items()}
    if len(vocabulary) < len(spelled):
        twice = next(text for token_id, text in spelled.items() if vocabulary[text] != token_id)
        raise ConfigError(f"the tokenizer gives {twice!r} two ids: one in tokenizer.model, one among the added tokens")
    unknown = next(spelled[token_id] for token_id, piece in enumerate(model.pieces) if piece.kind == _UNKNOWN)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary, _merges(model, listed), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback
        )
    )
    backend.normalizer = _normalizer(model, prefix)
    if prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    strip = [] if prefix == "never" else [decoders.Strip(content=" ", left=1)]
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    backend.decoder = decoders.Sequence(steps)
    for added in _added(model, listed):
        backend.add_special_tokens([added]) if added.special else backend.add_tokens([added])
    ends = [token for token in (bos, eos) if token]
    for token in ends:
        if token not in vocabulary:
            raise ConfigError(f"tokenizer_config.json puts {token!r} around a prompt, which is not in the vocabulary")
    if ends:
        backend.post_processor = processors.TemplateProcessing(
            single=[token for token in (bos, "$A", eos) if token],
            special_tokens=[(token, vocabulary[token]) for token in ends],
        )
    return backend


def _merges(model: SentencePieceModel, listed: Mapping[int, AddedToken]) -> list[tuple[str, str]]:
    scores = {
        piece.text: piece.score
        for token_id, piece in enumerate(model.pieces)
        if piece.kind == _NORMAL and token_id not in listed
    }
    ranked = sorted(scores, key=lambda text: -scores[text])  # stable: equal scores in the order of their ids
    cuts = ((text[:at], text[at:]) for text in ranked for at in range(1, len(text)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def _normalizer(model: SentencePieceModel, prefix: Prefix) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {_SPACE}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if prefix == "always":
        steps.append(normalizers.Prepend(_SPACE))
    if prefix != "first":  # the pre-tokenizer does it, which alone knows where the prompt begins
        steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _added(model: SentencePieceModel, listed: Mapping[int, AddedToken]) -> Iterator[AddedToken]:
    """Listed tokens, and the model's own control and user-defined pieces; matched in the text as it is written."""
    for token_id, piece in enumerate(model.pieces):
        if token_id not in listed and piece.kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            yield AddedToken(piece.text, normalized=False, special=piece.kind != _USER_DEFINED)
    for token in listed.values():
        yield AddedToken(
            token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
            normalized=False, special=token.special,
        )  # fmt: skip
