"""`generate` of transformers behind the lines of `contender.WorkerSession`: `... transformers_worker.py FOLDER`.

Several questions at once are one batch, padded on the left; answers have a fixed length, and are greedy unless the
first question says how to sample. The time of a token is when its logits are there. Preprocessing counts, as it does
for a server.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, LogitsProcessor, LogitsProcessorList
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trifocal.bench.load import Measured

PAD = "<|image_pad|>"


class Clock(LogitsProcessor):
    """Notes when the logits of each token are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits as they are."""
        self.times.append(time.perf_counter())
        return scores


class Generator:
    """A model with its tokenizer and image processor."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    @torch.inference_mode()
    def answer(self, questions: list[dict[str, Any]]) -> list[Measured]:
        """Times of one batch."""
        started, clock = time.perf_counter(), Clock()
        inputs = self._inputs([question["messages"] for question in questions])
        length, sampling = questions[0]["output_tokens"], questions[0]["sampling"]
        output = self.model.generate(
            **inputs, max_new_tokens=length, min_new_tokens=length, do_sample=bool(sampling), **sampling,
            pad_token_id=self.tokenizer.pad_token_id, logits_processor=LogitsProcessorList([clock]),
        )  # fmt: skip
        end = time.perf_counter()
        num_output = output.shape[1] - inputs["input_ids"].shape[1]
        return [
            Measured(started, end, clock.times, int(mask.sum()), num_output) for mask in inputs["attention_mask"]
        ]  # fmt: skip

    def _inputs(self, conversations: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        texts, pictures = [], []
        for messages in conversations:
            texts.append(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            for message in messages:
                if isinstance(message["content"], list):
                    pictures += [_picture(part) for part in message["content"] if part["type"] == "image_url"]
        inputs: dict[str, torch.Tensor] = {}
        if pictures:
            inputs |= self.images(images=pictures, return_tensors="pt")
            counts = iter((inputs["image_grid_thw"].prod(-1) // self.images.merge_size**2).tolist())
            texts = [text.replace(PAD, PAD * next(counts), 1) for text in texts]
        inputs |= self.tokenizer(texts, return_tensors="pt", padding=True)
        if pictures:
            is_picture = inputs["input_ids"] == self.tokenizer.convert_tokens_to_ids(PAD)
            inputs["mm_token_type_ids"] = is_picture.long()
        return inputs


def _picture(part: dict[str, Any]) -> Image.Image:
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return Image.open(io.BytesIO(data)).convert("RGB")


def main() -> None:
    """Serve standard input."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries talk, too
    transformers.logging.set_verbosity_error()
    generator = Generator(sys.argv[1])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {
                "measured": [asdict(one) for one in generator.answer(json.loads(line)["questions"])]
            }
        except Exception as error:
            answer = {"error": repr(error)[:400]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
