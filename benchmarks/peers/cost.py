"""What the benchmark's work takes at least: multiplications and bytes of the checkpoint in `checkpoint.py`."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers import checkpoint as shape

LAYER_SHAPES = (  # outputs and inputs of the products of one layer, as an engine fuses them
    ((shape.HEADS + 2 * shape.KV_HEADS) * shape.HEAD_SIZE, shape.HIDDEN),
    (shape.HIDDEN, shape.HEADS * shape.HEAD_SIZE),
    (2 * shape.INTERMEDIATE, shape.HIDDEN),
    (shape.HIDDEN, shape.INTERMEDIATE),
)
_LAYERS = shape.LAYERS * sum(outputs * inputs for outputs, inputs in LAYER_SHAPES)
_HEAD = shape.VOCAB * shape.HIDDEN
_BLOCK = (4 * shape.VISION_HIDDEN + 3 * shape.VISION_INTERMEDIATE) * shape.VISION_HIDDEN
KV_BYTES = 2 * 2 * shape.LAYERS * shape.KV_HEADS * shape.HEAD_SIZE  # of a token, in bfloat16


def prompt_flop(tokens: int) -> float:
    """Products of a prompt, whose last token alone needs the head. Attention's own are not counted."""
    return 2.0 * (_LAYERS * tokens + _HEAD)


def step_flop(sequences: int) -> float:
    """Products of one decoding step."""
    return 2.0 * (_LAYERS + _HEAD) * sequences


def picture_flop(width: int = 448, height: int = 448) -> float:
    """Products of the vision tower for one picture; its attention's are not counted."""
    patches = (width // 14) * (height // 14)
    a_patch = shape.VISION_HIDDEN * shape.PATCH_VALUES + shape.VISION_LAYERS * _BLOCK
    a_token = shape.MERGED * (shape.MERGED + shape.HIDDEN)
    return 2.0 * (patches * a_patch + patches / 4 * a_token)


@dataclass(frozen=True)
class Rates:
    """What the machine reaches: bytes/s of reading memory, operations/s of large products."""

    read: float
    gemm_bf16: float
    gemm_int8: float

    def gemm(self, precision: str) -> float:
        """That of the activations' type: int4 weights are multiplied as bfloat16."""
        return self.gemm_int8 if precision == "int8" else self.gemm_bf16


def floor_seconds(
    rates: Rates, precision: str, weight_bytes: float, *, streams: int, prompt: int, output: int, pictures: int = 0
) -> float:
    """Least time for `streams` requests at once: prompts at the rate of products, steps at that or at the memory's."""
    vision = pictures * picture_flop() / rates.gemm(precision)  # int4 leaves the tower alone, int8 does not
    prefill = streams * prompt_flop(prompt) / rates.gemm(precision)
    step = max(weight_bytes / rates.read, step_flop(streams) / rates.gemm(precision))
    return vision + prefill + output * step
