"""Train the demonstration model: `python -m tools.demo_model.train --out trifocal/demo/model`.

Resumes from the work folder when that holds a training checkpoint. Every batch is a pure function of the seed
and the step, and the learning rate is constant until the final decay, so a run that is stopped and resumed
sees the same data and takes the same steps as one that is not.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Full
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from tools.demo_model.batches import (
    FULL,
    Batch,
    VisionBatch,
    pack,
    sample_row,
    talk_row,
    training_batch,
    vision_batch,
)
from tools.demo_model.checkpoint import model_config, new_model, original_tensors, write_folder
from tools.demo_model.forward import answer_logits, exact_answers
from tools.demo_model.grounding import GroundingHead
from tools.demo_model.samples import make_sample
from tools.demo_model.tokenizer import train_tokenizer
from tools.demo_model.vocabulary import COLOURS, SHAPES
from tools.demo_model.windows import grouped_windows


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the code."""

    seed: int = 0
    vision_steps: int = 2000  # first phase: the vision tower alone, on what lies under each token
    vision_batch_size: int = 48
    steps: int = 8600  # both phases
    decay_steps: int = 1000
    warmup_steps: int = 100
    batch_size: int = 32
    adam_rate: float = 1.5e-3
    muon_rate: float = 2e-3
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    grounding_weight: float = 2.0
    word_weight: float = 0.25

    def rate_at(self, step: int) -> float:
        """The share of the full learning rate: linear warm-up, plateau, linear decay to zero."""
        left = (self.steps - step) / self.decay_steps
        begun = step - self.vision_steps if step >= self.vision_steps else step  # each phase warms up
        return max(0.0, min(1.0, (begun + 1) / self.warmup_steps, left))


class Trainer:
    """Model, optimizers and step count; what a training checkpoint holds."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.config = model_config(tokenizer)
        self.model: Qwen2_5_VLForConditionalGeneration = new_model(self.config)
        self.model.train()
        self.step = 0
        words = [[tokenizer.encode(f" {name}").ids[0] for name in names] for names in (SHAPES, COLOURS)]
        self.grounding = GroundingHead(self.config["hidden_size"], words)
        self.optimizers = _optimizers(self.model, recipe)
        self.optimizers.append(torch.optim.AdamW(self.grounding.parameters(), recipe.adam_rate, fused=True))
        self.base_rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]

    def train_on(self, batch: Batch | VisionBatch) -> tuple[float, float]:
        """One step; returns the mean losses of a supervised token and of a label (see grounding.py)."""
        share = self.recipe.rate_at(self.step)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, self.base_rates, strict=True):
            group["lr"] = rate * share
        loss = ground = aligned = torch.zeros(())
        # Products in bfloat16 over float32 weights: half the time on a processor that has them, and the same loss to
        # four places.
        with torch.autocast("cpu", torch.bfloat16):
            if isinstance(batch, Batch):
                logits, labels, features = answer_logits(self.model, batch)
                loss = cross_entropy(logits, labels)
            else:
                features = self.model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
            if len(features):
                ground = self.grounding.loss(features, batch.grounds)
                embeddings = self.model.get_input_embeddings().weight
                aligned = self.grounding.word_loss(features, batch.grounds, embeddings)
        torch.autograd.backward(loss + self.recipe.grounding_weight * (ground + self.recipe.word_weight * aligned))
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach()), float(ground.detach())

    def save(self, path: Path, seconds: float) -> None:
        state = {
            "step": self.step,
            "seconds": seconds,
            "model": self.model.state_dict(),
            "grounding": self.grounding.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self, path: Path) -> float:
        """Restore; returns the seconds trained so far."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.grounding.load_state_dict(state["grounding"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = int(state["step"])
        return float(state["seconds"])


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, patch projection, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_inner = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (matrices if is_inner and recipe.muon_rate > 0 else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, recipe.adam_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def _batch(recipe: Recipe, step: int, tokenizer: Tokenizer) -> Batch | VisionBatch:
    if step < recipe.vision_steps:
        return vision_batch(recipe.seed, step, recipe.vision_batch_size)
    return training_batch(recipe.seed, step - recipe.vision_steps, recipe.batch_size, tokenizer)


def _draw(queue: Queue[Batch | VisionBatch], recipe: Recipe, tokenizer_json: str, first: int) -> None:
    """Fill the queue; give up when the trainer is gone, for nobody would end this process then."""
    torch.set_num_threads(1)
    tokenizer, trainer = Tokenizer.from_str(tokenizer_json), parent_process()
    for step in range(first, recipe.steps):
        batch = _batch(recipe, step, tokenizer)
        while True:
            try:
                queue.put(batch, timeout=5)
                break
            except Full:
                if trainer is None or not trainer.is_alive():
                    return
    # Tensors in the queue lie in this process's memory: it stays until the trainer, done with them, ends it.
    while trainer is not None and trainer.is_alive():
        time.sleep(1)


def batches_from(recipe: Recipe, tokenizer: Tokenizer, first: int) -> Iterator[Batch | VisionBatch]:
    """The batches of steps `first`.. in order, drawn ahead by one process."""
    context = get_context("spawn")
    queue: Queue[Batch | VisionBatch] = context.Queue(maxsize=6)
    arguments = (queue, recipe, tokenizer.to_str(), first)
    process = context.Process(target=_draw, args=arguments, daemon=True)
    process.start()
    try:
        for _ in range(first, recipe.steps):
            yield queue.get(timeout=300)
    finally:
        process.terminate()


def held_out(tokenizer: Tokenizer, size: int = 24) -> list[Batch]:
    """A small check set per kind of sample; its seeds are not training seeds."""
    batches = []
    for kind in FULL:
        rng = Random(f"check-{kind}")
        pairs = [
            talk_row(rng, tokenizer) if kind == "talk" else sample_row(rng, tokenizer, make_sample(rng, kind))
            for _ in range(size)
        ]
        batches.append(pack([row for row, _ in pairs], [exchange.kind for _, chosen in pairs for exchange in chosen]))
    return batches


def accuracy(model: Qwen2_5_VLForConditionalGeneration, batches: list[Batch]) -> dict[str, float]:
    """Share of exact answers by kind."""
    tally: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        for kind, is_right in zip(batch.kinds, exact_answers(model, batch), strict=True):
            tally[kind].append(is_right)
    return {kind: sum(rights) / len(rights) for kind, rights in sorted(tally.items())}


def seen(trainer: Trainer, batch: VisionBatch) -> dict[str, float]:
    """Share of right labels under the tokens of things, by column."""
    with torch.no_grad():
        features = trainer.model.model.visual(batch.pixels, grid_thw=batch.grids).pooler_output
    return trainer.grounding.accuracy(features, batch.grounds)


def export(trainer: Trainer, tokenizer: Tokenizer, folder: Path) -> None:
    write_folder(folder, original_tensors(trainer.model, torch.bfloat16), trainer.config, tokenizer)


def run(recipe: Recipe, out: Path, work: Path, check_every: int, log: Any) -> None:
    """Train to the recipe's last step, with a checkpoint and an export at every check."""
    tokenizer = train_tokenizer(recipe.seed)
    trainer = Trainer(recipe, tokenizer)
    work.mkdir(parents=True, exist_ok=True)
    saved = work / "training.pt"
    before = trainer.load(saved) if saved.exists() else 0.0
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    log(f"{asdict(recipe)} parameters {parameters} from step {trainer.step}")
    if trainer.step == 0:
        export(trainer, tokenizer, out)
    look, check = vision_batch("check", 0, recipe.vision_batch_size), held_out(tokenizer)
    started, losses = time.monotonic(), []
    for batch in batches_from(recipe, tokenizer, trainer.step):
        losses.append(trainer.train_on(batch))
        seconds = before + time.monotonic() - started
        if trainer.step % 50 == 0:
            loss, ground = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            log(f"step {trainer.step} loss {loss:.4f} grounding {ground:.4f} at {seconds:.0f} s")
            losses = []
        if trainer.step % check_every == 0 or trainer.step == recipe.steps:
            trainer.save(saved, seconds)
            export(trainer, tokenizer, out)
            for rows in (seen(trainer, look), accuracy(trainer.model, check)):
                log("  " + " ".join(f"{name} {share:.2f}" for name, share in rows.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demonstration model; resumes from the work folder.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--work", type=Path, default=Path(".cache/demo_model"), help="training state and log")
    parser.add_argument("--check-every", type=int, default=250, help="steps between checks, saves and exports")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    out, work, every = arguments.pop("out"), arguments.pop("work"), arguments.pop("check_every")
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)

    def log(line: str) -> None:
        print(line, flush=True)
        with open(work / "train.log", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    with grouped_windows():
        run(Recipe(**arguments), out, work, every, log)


if __name__ == "__main__":
    main()
