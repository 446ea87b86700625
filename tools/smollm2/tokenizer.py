"""tokenizer.json and its settings: SmolLM2's vocabulary and InternVL's control tokens behind it."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tools.smollm2.language import Vocabulary

# As in the released InternVL2.5 tokenizers, in their order.
INTERNVL_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Digits one by one, then GPT-2's byte-level BPE, as llama.cpp's pre-tokenizer `smollm` and SmolLM2's own."""
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=vocabulary.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [*(vocabulary.tokens[token_id] for token_id in vocabulary.control_ids), *INTERNVL_TOKENS]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer


def tokenizer_config(vocabulary: Vocabulary, max_length: int) -> dict[str, Any]:
    """tokenizer_config.json, the chat template included."""
    tokens = vocabulary.tokens
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "additional_special_tokens": list(INTERNVL_TOKENS),
        "bos_token": tokens[vocabulary.bos_id],
        "eos_token": tokens[vocabulary.eos_id],
        "pad_token": tokens[vocabulary.pad_id],
        "unk_token": tokens[vocabulary.unk_id],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": vocabulary.chat_template,
    }
