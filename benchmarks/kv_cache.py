"""What an int8 KV cache changes in a model's answers, and what it saves.

    python -m benchmarks.kv_cache [MODEL] [--max-tokens 64] [--dtype auto]

Greedy answers with a cache of the model's type and with one in int8: the built-in model gets its sample questions, with
their pictures and clips; another one gets texts. As long as two answers are the same, token by token, the differences
of the tokens' log-probabilities are taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from trifocal.attention.base import KVCache
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.types import RequestOutput

DEMO = Path(__file__).parents[1] / "trifocal" / "demo"
TEXTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in three sentences why the sky is blue.",
    "Count from one to thirty in words.",
    "Write a Python function that reverses a list.",
    "Tell me a story about a fox and a crow. " + "The fox was clever and the crow was vain. " * 40,
)


def samples() -> list[list[dict[str, Any]]]:
    """The built-in model's questions."""
    conversations = []
    for row in json.loads((DEMO / "samples" / "samples.json").read_text()):
        content: list[dict[str, Any]] = []
        for name in row["media"]:
            kind = "video_url" if name.endswith(".mp4") else "image_url"
            content.append({"type": kind, kind: {"url": (DEMO / "samples" / name).as_uri()}})
        conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": row["question"]}]}])
    return conversations


def answers(args: argparse.Namespace, kv_cache_dtype: str) -> tuple[list[RequestOutput], int]:
    """Answers, and the bytes that a token takes in the cache."""
    is_demo = Path(args.model) == DEMO / "model"
    conversations = samples() if is_demo else [[{"role": "user", "content": text}] for text in TEXTS]
    greedy = SamplingParams(temperature=0, max_tokens=args.max_tokens, logprobs=0)
    with LLM(args.model, dtype=args.dtype, kv_cache_dtype=kv_cache_dtype, max_model_len=args.max_model_len) as llm:
        text = llm.config.model.spec.text
        per_head = KVCache.bytes_per_head(text.head_dim, getattr(torch, llm.config.cache.kv_cache_dtype))
        return llm.chat(conversations, greedy, use_tqdm=False), text.num_layers * text.num_kv_heads * per_head


def differences(one: RequestOutput, other: RequestOutput) -> tuple[list[float], bool]:
    """Of log-probabilities while the tokens are the same; are all of them?"""
    a, b = one.outputs[0], other.outputs[0]
    assert a.logprobs is not None and b.logprobs is not None
    found = []
    for x, y, p, q in zip(a.token_ids, b.token_ids, a.logprobs, b.logprobs, strict=False):
        if x != y:
            break
        found.append(abs(p.logprobs[0] - q.logprobs[0]))
    return found, a.token_ids == b.token_ids


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(DEMO / "model"))
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    plain, plain_bytes = answers(args, "auto")
    rounded, rounded_bytes = answers(args, "int8")
    pairs = [differences(*pair) for pair in zip(plain, rounded, strict=True)]
    all_found = sorted(value for found, _ in pairs for value in found)
    print(f"bytes a token: {plain_bytes} and {rounded_bytes} in int8, {rounded_bytes / plain_bytes:.0%}")
    print(f"equal answers: {sum(is_equal for _, is_equal in pairs)} of {len(pairs)}")
    print(
        f"difference of a token's log-probability over {len(all_found)} tokens: mean {statistics.mean(all_found):.4f}, "
        f"99 % below {all_found[int(0.99 * (len(all_found) - 1))]:.4f}, largest {all_found[-1]:.4f}"
    )


if __name__ == "__main__":
    main()
