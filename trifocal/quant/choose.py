"""Which linear layers of a model are kept in which format."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trifocal.errors import ConfigError
from trifocal.layers.embedding import Embedding
from trifocal.layers.linear import PLAIN, Linear, LinearMethod, MergedLinear
from trifocal.model_spec import Quantization
from trifocal.quant.awq import AwqLinear
from trifocal.quant.blocks import BLOCKS, INT8_BLOCKS
from trifocal.quant.int4 import GROUPS, Int4Linear
from trifocal.quant.int8 import INT8

_Choice = Callable[[str, Linear], LinearMethod]


def quantize_layers(decoder: nn.Module, prefix: str, quantization: Quantization, names: frozenset[str]) -> None:
    """Give the linear layers under `decoder` their formats, before they hold anything.

    `prefix` is the path of `decoder` in its model, `names` those of the checkpoint's packed weights, as our paths.
    Raises `ConfigError` where a format does not fit.
    """
    is_tied = not any(isinstance(module, Linear) for name, module in decoder.named_children() if name == "lm_head")
    choice: _Choice
    if quantization.method == "awq":
        choice = _awq(prefix, quantization, names)
    else:
        choice = _rounded(is_int4=quantization.method == "int4", is_tied=is_tied)
    for path, layer in decoder.named_modules():
        if isinstance(layer, Linear):
            method = choice(path, layer)
            if method is not PLAIN:
                layer.use(method)


def quantize_towers(model: nn.Module, quantization: Quantization) -> None:
    """What is left after `quantize_layers`, the towers and what joins them to the language model: int8 along with it.

    Other formats are there to save memory and make decoding quick; for a tower, which computes many rows at a time,
    only int8 is quicker than the weights as they are.
    """
    if quantization.method != "int8":
        return
    for layer in model.modules():
        if isinstance(layer, Linear) and not isinstance(layer, Embedding) and layer.method is PLAIN:
            layer.use(INT8)


def use_blocks(model: nn.Module) -> None:
    """Lay weights out for kernels that want them so: those in int8, and plain ones of models in bfloat16."""
    for layer in model.modules():
        if not isinstance(layer, Linear):
            continue
        if layer.method is INT8:
            layer.use(INT8_BLOCKS)
        elif layer.method is PLAIN and layer.compute_dtype == torch.bfloat16 and layer.in_features % 2 == 0:
            layer.use(BLOCKS)


def _rounded(*, is_int4: bool, is_tied: bool) -> _Choice:
    """int8 everywhere, or int4 with an int8 head. A table that is only looked up stays as it is."""

    def choose(path: str, layer: Linear) -> LinearMethod:
        if isinstance(layer, Embedding):
            return INT8 if is_tied else PLAIN
        if not is_int4 or path == "lm_head":
            return INT8
        group = next((size for size in GROUPS if layer.in_features % size == 0), None)
        return INT8 if group is None else Int4Linear(group)

    return choose


def _awq(prefix: str, quantization: Quantization, names: frozenset[str]) -> _Choice:
    """AWQ where the checkpoint has it: lists of layers in config.json are not reliable, tensors are."""

    def choose(path: str, layer: Linear) -> LinearMethod:
        owner = f"{prefix}.{path}"
        first = owner
        if isinstance(layer, MergedLinear):
            first = f"{owner.rpartition('.')[0]}.{next(iter(layer.parts))}"
        if f"{first}.qweight" not in names:
            return PLAIN
        group = layer.in_features if quantization.group_size == -1 else quantization.group_size
        sizes = layer.parts.values() if isinstance(layer, MergedLinear) else [layer.out_features]
        if layer.in_features % group or group % 8 or any(size % 8 for size in sizes):
            raise ConfigError(
                f"config.json: group_size {group} does not fit {owner} with {layer.in_features} inputs and "
                f"{layer.out_features} outputs"
            )
        return AwqLinear(group)

    return choose
