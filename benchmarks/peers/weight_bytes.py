"""Bytes of weights that one decoding step of ours reads: `python -m benchmarks.peers.weight_bytes MODEL bf16 int8 ...`.

The model is built in each format, without memory, and what its language model would hold is counted: all of that is
read once a step, for the checkpoint's table of embeddings is its head, too.
"""

from __future__ import annotations

import json
import sys

import torch

from trifocal.config.engine import EngineArgs, resolve
from trifocal.models.decoder import Decoder
from trifocal.models.loader import empty_model
from trifocal.quant.choose import quantize_layers


def weight_bytes(folder: str, precision: str) -> int:
    """Of the language model."""
    config = resolve(EngineArgs(model=folder, quantization=None if precision == "bf16" else precision))
    dtype: torch.dtype = getattr(torch, config.model.dtype)
    model = empty_model(config.model.spec, dtype)
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        for path, module in model.named_modules():
            if config.model.quantization and isinstance(module, Decoder):
                quantize_layers(module, path, config.model.quantization, frozenset())
    torch.set_default_dtype(torch.float32)
    return sum(tensor.nbytes for name, tensor in model.named_parameters() if not name.startswith("visual."))


if __name__ == "__main__":
    print(json.dumps({precision: weight_bytes(sys.argv[1], precision) for precision in sys.argv[2:]}))
