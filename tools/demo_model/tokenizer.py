"""The model's own small byte-level BPE, trained on what the generator says; special tokens carry Qwen's names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tools.demo_model import clips, questions, scenes, smalltalk

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
DEFAULT_SYSTEM = "You are a helpful assistant."
SYSTEMS = ("Answer briefly.", "You are a careful assistant.", "You look at pictures and answer questions.",
           "You are Trifocal.", "Answer the question about the image.")  # fmt: skip
MAX_VOCABULARY = 704

# Qwen2's own pattern: single digits, an optional leading space before a word.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] in ('image', 'image_url') or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] in ('video', 'video_url') or 'video' in content or 'video_url' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus(seed: int = 0, rounds: int = 1500) -> Iterator[str]:
    """Everything that is ever said, without the printed words: those stay letters, so that reading is spelling."""
    rng = Random(f"corpus-{seed}")
    for _ in range(rounds):
        aspect = rng.choice((0.7, 1.0, 1.4))
        single = scenes.single_scene(rng, aspect)
        exchanges = questions.about_scene(rng, single)
        for make in (scenes.pair_scene, scenes.group_scene, scenes.text_scene):
            exchanges += questions.about_scene(rng, make(rng, aspect))
        exchanges += questions.about_clip(rng, clips.moving_clip(rng, aspect))
        exchanges += questions.about_images(rng, [single, scenes.single_scene(rng, aspect)])
        exchanges += [smalltalk.small_talk(rng) for _ in range(4)]
        for exchange in exchanges:
            for line in (exchange.question, exchange.question.lower(), exchange.answer):
                yield re.sub(r"\b[A-Z]{2,4}\b", "", line)
        yield "\n".join(("system", DEFAULT_SYSTEM, "user", "assistant", *SYSTEMS))


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """Bytes first, merges next, specials last, like the released Qwen vocabularies."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(SPECIAL),
        min_frequency=40,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return tokenizer
