"""What is asked of every contender, and the figures that an answer comes to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trifocal.bench.load import Measured
from trifocal.bench.workload import Question, Shape, make_questions

SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Workload:
    """Requests that are all sent at once. `is_once`: in the first round only."""

    name: str
    shape: Shape
    about: str
    is_once: bool = False

    def questions(self, seed: str) -> list[Question]:
        """Unlike each other, and unlike those of another seed."""
        return make_questions(self.shape, f"{seed}/{self.name}")


def _text(streams: int, words: int, tokens: int) -> Shape:
    return Shape(streams, streams, words, tokens)


def _sampled(shape: Shape) -> Shape:
    return replace(shape, is_sampled=True)


def _pictures(streams: int) -> Shape:
    return Shape(streams, streams, 32, 64, num_images=1)


WARM_UP = Workload("warm-up", Shape(1, 1, 8, 8, num_images=1), "not counted")
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("text1", _text(1, 10, 128), "one stream of text, 128 tokens"),
        Workload("text1-sampled", _sampled(_text(1, 10, 128)), "the same with temperature 0.7, top_p 0.8, top_k 20"),
        Workload("image1", _pictures(1), "one 448x448 picture, 64 tokens"),
        Workload("image8", _pictures(8), "eight requests at once, each with a picture of its own, 64 tokens"),
        Workload("text16", _text(16, 105, 64), "16 streams of text, 64 tokens each"),
        Workload("text16-sampled", _sampled(_text(16, 105, 64)), "the same with temperature 0.7, top_p 0.8, top_k 20"),
        Workload("text32", _text(32, 105, 64), "32 streams of text, 64 tokens each"),
        Workload("prefill512", _text(1, 462, 1), "a prompt of about 512 tokens, one token"),
        Workload("prefill2048", _text(1, 1915, 1), "a prompt of about 2048 tokens, one token"),
        Workload("text2", _text(2, 105, 64), "2 streams of text, 64 tokens each", is_once=True),
        Workload("text4", _text(4, 105, 64), "4 streams of text, 64 tokens each", is_once=True),
        Workload("text8", _text(8, 105, 64), "8 streams of text, 64 tokens each", is_once=True),
    )
}
AGAIN = "again"  # image1's picture once more, under another question
CONTEXT = "context"
CONTEXT_STREAMS = 8
CONTEXT_TOKENS = (1024, 2048, 4096, 8192)
WORDS_PER_TOKEN = 0.94  # of the words that are drawn, by Qwen's tokenizer


def same_picture(question: Question, seed: str) -> Question:
    """Another question, of eight words, about the picture of `question`."""
    [other] = make_questions(Shape(1, 1, 8, 8), seed)
    picture = question.messages[0]["content"][0]
    return Question([{"role": "user", "content": [picture, *other.messages[0]["content"]]}], 8)


def long_prompts(words: int) -> list[Question]:
    """One a stream; a longer prompt begins with the shorter one's words, so that its keys and values are kept."""
    whole = make_questions(_text(CONTEXT_STREAMS, CONTEXT_TOKENS[-1], 32), CONTEXT)
    cut = []
    for question in whole:
        text = " ".join(question.messages[0]["content"][0]["text"].split()[:words])
        cut.append(Question([{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}], 32))
    return cut


def figures(measured: Sequence[Measured]) -> dict[str, float]:
    """The numbers of one run. Raises `ValueError` with the first error if a request failed, or nothing was streamed.

    ttft_s: mean time to the first text; decode_tok_s: mean of (tokens - 1) / (last text - first text); tok_s: all
    tokens over the whole time.
    """
    for one in measured:
        if one.error is not None:
            raise ValueError(one.error)
        if not one.chunk_times or not one.num_output_tokens:
            raise ValueError("an answer had no text or no count of tokens")
    wall = max(one.end for one in measured) - min(one.start for one in measured)
    found = {
        "ttft_s": statistics.mean(one.chunk_times[0] - one.start for one in measured),
        "wall_s": wall,
        "tok_s": sum(one.num_output_tokens for one in measured) / wall,
        "prompt_tokens": statistics.mean(one.num_prompt_tokens for one in measured),
    }
    decoding = [
        (one.num_output_tokens - 1) / (one.chunk_times[-1] - one.chunk_times[0])
        for one in measured
        if one.num_output_tokens > 1 and len(one.chunk_times) > 1
    ]
    return found | ({"decode_tok_s": statistics.mean(decoding)} if decoding else {})


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
