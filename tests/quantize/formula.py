"""AWQ's files by the formula of the format, in numpy: what a reader that we did not write makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)  # from the low end of an integer: AutoAWQ's order_map


def unpacked(packed: torch.Tensor) -> np.ndarray:
    """int32 [rows, N / 8] -> [rows, N]."""
    words = packed.numpy().view(np.uint32)
    columns = np.zeros((len(words), 8 * words.shape[1]), dtype=np.float32)
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        columns[:, column::8] = words >> np.uint32(4 * nibble) & np.uint32(15)
    return columns


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of all shards."""
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


def write_dequantized(folder: Path, target: Path) -> int:
    """An ordinary checkpoint of the weights that the AWQ checkpoint `folder` stands for; returns how many it had."""
    target.mkdir()
    for file in folder.iterdir():
        if ".safetensors" not in file.name:
            shutil.copyfile(file, target / file.name)
    config = json.loads((target / "config.json").read_text())
    group = config.pop("quantization_config")["group_size"]
    (target / "config.json").write_text(json.dumps(config))
    tensors = all_tensors(folder)
    count = 0
    for name in [name for name in tensors if name.endswith(".qweight")]:
        owner = name.removesuffix("qweight")
        q, zero = unpacked(tensors.pop(name)), unpacked(tensors.pop(f"{owner}qzeros"))
        scale = tensors.pop(f"{owner}scales").numpy().astype(np.float32)
        weight = (q - zero.repeat(group, axis=0)) * scale.repeat(group, axis=0)
        tensors[f"{owner}weight"] = torch.from_numpy(np.ascontiguousarray(weight.T))
        count += 1
    save_file(tensors, target / "model.safetensors")
    return count
