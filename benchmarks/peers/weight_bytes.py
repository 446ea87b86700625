"""Bytes of weights that one decoding step of ours reads: `python -m benchmarks.peers.weight_bytes MODEL [METHOD]`.

The model is loaded as the engine does it, and what its language model holds is counted: all of that is read
once a step, for the checkpoint's table of embeddings is its head, too.
"""

from __future__ import annotations

import json
import sys

import torch

from trifocal.config import EngineArgs, resolve
from trifocal.models.loader import load_model


def main() -> None:
    """Print a JSON line."""
    config = resolve(EngineArgs(model=sys.argv[1], quantization=sys.argv[2] if len(sys.argv) > 2 else None))
    model = load_model(
        config.spec, dtype=getattr(torch, config.dtype), device=torch.device("cpu"), load_format="auto", seed=0,
        progress=False, quantization=config.quantization,
    )  # fmt: skip
    read = [tensor.nbytes for name, tensor in model.named_parameters() if not name.startswith("visual.")]
    print(json.dumps({"weight_bytes": sum(read)}))


if __name__ == "__main__":
    main()
