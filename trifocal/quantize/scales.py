"""The search for scales: of a decoder layer on what it was recorded with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trifocal.layers.linear import Linear
from trifocal.models.decoder import DecoderLayer
from trifocal.quantize.change import Change, exact_over, spread
from trifocal.quantize.clip import find_limit
from trifocal.quantize.layer import Recorded, Step, mlp_of

_GRID = 20  # exponents 0, 1/20 .. 1; with 0 nothing is scaled: plain rounding to the nearest is among the candidates
_MOST_ROWS = 1024  # tokens that errors are measured on where no attention needs whole sequences


@dataclass(frozen=True)
class Found:
    """Changes by the name of a module within the layer, and squared errors: with plain rounding, and with these."""

    changes: dict[str, Change]
    plain_error: float
    error: float


def search_layer(layer: DecoderLayer, norms: dict[str, Tensor], seen: Recorded, step: Step, group: int) -> Found:
    """Find the changes of a layer in float32.

    `norms` are the weights of the layer's two norms as the checkpoint has them, whose type decides what they can hold.
    """
    attention, mlp = layer.self_attn, mlp_of(layer)
    # An error counts beside the residual stream that it is added to: that is what the next norm sees. Otherwise the few
    # tokens with huge activations that language models have would decide alone.
    weight = seen.output.norm(dim=-1, keepdim=True).clamp(min=1e-6).reciprocal()
    search = _Search(group)
    kv_heads, group_size = attention.num_kv_heads, attention.num_heads // attention.num_kv_heads

    def attend() -> Tensor:
        return step.attend(layer, seen.qkv)

    gate_up_rows, down_rows, o_rows, few = (thinned(each) for each in (seen.gate_up, seen.down, seen.o, weight))
    into_qkv = search.best(attention.qkv_proj, magnitude(seen.qkv, weight), attend, weight)
    # Query heads that share a key head share its values, and so their scales.
    by_head = magnitude(seen.o, weight).view(kv_heads, group_size, -1).mean(1, keepdim=True)
    into_o = search.best(
        attention.o_proj, by_head.expand(-1, group_size, -1).flatten(), lambda: attention.o_proj(o_rows), few
    )  # fmt: skip
    into_gate_up = search.best(mlp.gate_up_proj, magnitude(seen.gate_up, weight), lambda: mlp(gate_up_rows), few)
    into_down = search.best(mlp.down_proj, magnitude(seen.down, weight), lambda: mlp.down_proj(down_rows), few)

    into_qkv = exact_over(norms["input_layernorm"], into_qkv)
    into_gate_up = exact_over(norms["post_attention_layernorm"], into_gate_up)
    of_v = into_o.view(kv_heads, group_size, -1)[:, 0].flatten()
    changes = {
        "input_layernorm": Change(over=into_qkv),
        "self_attn.q_proj": Change(times=into_qkv),
        "self_attn.k_proj": Change(times=into_qkv),
        "self_attn.v_proj": Change(times=into_qkv, over=of_v),
        "self_attn.o_proj": Change(times=into_o),
        "post_attention_layernorm": Change(over=into_gate_up),
        "mlp.gate_proj": Change(times=into_gate_up),
        "mlp.up_proj": Change(times=into_gate_up, over=into_down),
        "mlp.down_proj": Change(times=into_down),
    }
    inputs = {"self_attn.o_proj": o_rows, "mlp.down_proj": down_rows}
    inputs |= {"mlp.gate_proj": gate_up_rows, "mlp.up_proj": gate_up_rows, "self_attn.v_proj": thinned(seen.qkv)}
    weights = part_weights(layer)
    # Not q and k: what they lose is multiplied by each other.
    for name, rows in inputs.items():
        change = changes[name]
        assert change.times is not None
        change.limit = find_limit(change.weight(weights[name]), few * rows / change.times, group)
    return Found(changes, search.plain_error, search.error)


class _Search:
    def __init__(self, group: int) -> None:
        self.group = group
        self.plain_error = self.error = 0.0

    def best(self, linear: Linear, size: Tensor, block: Callable[[], Tensor], weight: Tensor) -> Tensor:
        """The scale [in] of `linear` that changes the output of `block`, which uses it, the least.

        `size` [in] is the magnitude of its inputs, candidates are powers of it; `weight` [rows, 1] that of errors.
        """
        original, exact = linear.weight.clone(), block()
        errors, candidates = [], [_candidate(size, index / _GRID) for index in range(_GRID + 1)]
        for scale in candidates:
            linear.weight.copy_(spread(original, scale, self.group))
            error = float(((block() - exact) * weight).square().sum()) / len(weight)
            errors.append(error if error == error else float("inf"))
        linear.weight.copy_(original)
        index = min(range(len(errors)), key=errors.__getitem__)
        self.plain_error += errors[0]
        self.error += errors[index]
        return candidates[index]


def _candidate(size: Tensor, exponent: float) -> Tensor:
    scale = size.pow(exponent).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


def magnitude(x: Tensor, weight: Tensor) -> Tensor:
    """x [tokens, in], weight [tokens, 1] -> weighted mean magnitude of each input, [in]."""
    return (x.abs() * weight).sum(0) / weight.sum()


def thinned(x: Tensor) -> Tensor:
    """Evenly spread rows, as many as errors are measured on."""
    return x[:: max(1, -(-len(x) // _MOST_ROWS))]


def part_weights(layer: DecoderLayer) -> dict[str, Tensor]:
    """The weight of each linear layer as a checkpoint names them, q, k and v apart."""
    weights: dict[str, Tensor] = {}
    for path, module in layer.named_modules():
        if isinstance(module, Linear):
            parts = getattr(module, "parts", None)
            owner, _, name = path.rpartition(".")
            sizes = parts or {name: module.out_features}
            rows = torch.split(module.weight, list(sizes.values()))
            weights |= {f"{owner}.{part}": each for part, each in zip(sizes, rows, strict=True)}
    return weights
