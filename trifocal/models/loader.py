"""From a checkpoint folder to a model in memory: safetensors read by memory map, tensor by tensor, into place.

Every parameter must be filled exactly once; whatever is wrong with a folder is one `ConfigError` that names the file
and the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from trifocal.layers.linear import Linear, MergedLinear
from trifocal.model_spec import ModelSpec, Quantization, read_json
from trifocal.models.base import Model
from trifocal.models.decoder import Decoder
from trifocal.models.registry import MODELS
from trifocal.quant.base import Slot
from trifocal.quant.choose import quantize_layers
from trifocal.types import ConfigError

_INDEX = "model.safetensors.index.json"
_HARMLESS = (".inv_freq", ".masked_bias", ".attn.bias")  # tables that older releases saved with the weights


def load_model(
    spec: ModelSpec, *, dtype: torch.dtype, device: torch.device, load_format: str, seed: int, progress: bool = False,
    quantization: Quantization | None = None,
) -> Model:  # fmt: skip
    """Build the model of `spec` and fill it, from its folder or (`load_format="dummy"`) with seeded random numbers.

    The result is in eval mode, needs no gradients and holds each weight once, in `dtype` on `device`; linear layers of
    the language model are in the format that `quantization` asks for. Raises `ConfigError`.
    """
    with _meta_device(dtype):
        model = MODELS.get(spec.architecture)(spec)
        if quantization:
            names = frozenset[str]() if load_format == "dummy" else _our_names(model, Path(spec.path))
            for path, module in model.named_modules():
                if isinstance(module, Decoder):
                    quantize_layers(module, path, quantization, names)
    _materialize(model, device)
    if load_format == "dummy":
        _fill_randomly(model, seed)
    else:
        load_weights(model, Path(spec.path), progress=progress)
    return model.eval()


def load_weights(model: Model, folder: Path, *, progress: bool = False) -> None:
    """Copy the safetensors of `folder` into the parameters of `model`. Raises `ConfigError`."""
    slots = weight_slots(model)
    filled: dict[str, str] = {}  # our name -> file
    with torch.no_grad():
        for file, name, tensor in _tensors(folder, progress):
            ours = model.rename(name)
            if ours is None or name.endswith(_HARMLESS):
                continue
            for part, values in model.unpack(ours, tensor):
                _fill(slots, part, values, f"{file}: tensor {name}", model)
                if part in filled:
                    raise ConfigError(f"{file}: tensor {name} was already loaded from {filled[part]}")
                filled[part] = file
    missing = [name for name in slots if name not in filled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{folder.name}: tensor {missing[0]}{more} is in none of the safetensors files")


def _our_names(model: Model, folder: Path) -> frozenset[str]:
    """Names of a folder's tensors as `rename` gives them."""
    return frozenset(name for name in map(model.rename, tensor_names(folder)) if name is not None)


def _fill(slots: Mapping[str, Slot], name: str, values: Tensor, where: str, model: Model) -> None:
    slot = slots.get(name)
    if slot is None:
        raise ConfigError(f"{where} has no place in {type(model).__name__}")
    if slot.shape != values.shape:
        raise ConfigError(f"{where} has shape {list(values.shape)}, config.json asks for {list(slot.shape)}")
    slot.copy_(values)


def tensor_names(folder: Path) -> frozenset[str]:
    """Names of all tensors in a folder's shards, from the index or the files' headers; none for a folder without."""
    from safetensors import SafetensorError, safe_open

    expected = _weight_map(folder)
    if expected or not any(folder.glob("*.safetensors")):
        return frozenset(expected)
    names: set[str] = set()
    for file in _files(folder):
        _check_file(folder / file)
        try:
            with safe_open(folder / file, framework="pt") as shard:
                names.update(shard.keys())
        except SafetensorError as error:
            raise ConfigError(f"{folder.name}/{file} is not a readable safetensors file: {error}") from None
    return frozenset(names)


def weight_slots(model: nn.Module) -> dict[str, Slot]:
    """Name -> what takes in the checkpoint tensor of this name (as `rename` gives it).

    Names are those of the parameters, except that a linear layer has the tensors of its format, and a merged one has
    them for each of its parts.
    """
    slots: dict[str, Slot] = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            owner = path.rpartition(".")[0] if isinstance(module, MergedLinear) else path
            slots |= {f"{owner}.{name}": slot for name, slot in module.weight_slots().items()}
        else:
            slots |= {f"{path}.{name}": parameter for name, parameter in module.named_parameters(recurse=False)}
    return slots


# ------------------------------------------------------------------------------------------- building


@contextmanager
def _meta_device(dtype: torch.dtype) -> Iterator[None]:
    """Parameters made inside have `dtype` and no memory."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(previous)


def _materialize(model: nn.Module, device: torch.device) -> None:
    """Give parameters memory (uninitialised) and move tables; `Module.to_empty` would lose the tables' values."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def _fill_randomly(model: nn.Module, seed: int) -> None:
    """Weights of a scale that keeps activations near 1: vectors that scale are about 1, the others about 0."""
    with torch.no_grad():
        for index, (name, slot) in enumerate(weight_slots(model).items()):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            values = torch.empty(slot.shape)
            if values.ndim == 1:
                middle = 0.0 if name.endswith("bias") else 1.0
                values.uniform_(middle - 0.1, middle + 0.1, generator=generator)
            else:
                bound = (3 / values[0].numel()) ** 0.5
                values.uniform_(-bound, bound, generator=generator)
            slot.copy_(values)


# ------------------------------------------------------------------------------------------- reading


def _tensors(folder: Path, progress: bool) -> Iterator[tuple[str, str, Tensor]]:
    """(file, name, tensor) of everything in a folder's shards; tensors are views of mapped files."""
    from safetensors import SafetensorError, safe_open
    from tqdm import tqdm

    expected = _weight_map(folder)
    files = sorted(set(expected.values())) if expected else _files(folder)
    for file in files:
        _check_file(folder / file)
    hides = None if progress else True  # None: only where nobody sees it
    with tqdm(total=len(expected), desc="Loading weights", unit=" tensors", disable=hides) as bar:
        for file in files:
            where = f"{folder.name}/{file}"
            try:
                with safe_open(folder / file, framework="pt") as shard:
                    names = set(shard.keys())
                    if not expected:
                        bar.total += len(names)
                    absent = next((n for n, owner in expected.items() if owner == file and n not in names), None)
                    if absent:
                        raise ConfigError(f"{where}: tensor {absent} is missing; {_INDEX} says it is in this file")
                    for name in shard.keys():  # noqa: SIM118  # not a dict
                        yield where, name, shard.get_tensor(name)
                        bar.update()
            except SafetensorError as error:
                raise ConfigError(f"{where} is not a readable safetensors file: {error}") from None


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file from the index of a sharded checkpoint, `{}` without one."""
    index = read_json(folder / _INDEX)
    if not index:
        return {}
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ConfigError(f"{folder.name}/{_INDEX}: field weight_map must map tensor names to file names")
    return weight_map


def _files(folder: Path) -> list[str]:
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder.name} holds no *.safetensors file; other weight formats are not read")
    return files


def _check_file(path: Path) -> None:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise ConfigError(f"{where} is missing: the checkpoint is incomplete")
    if path.stat().st_size == 0:
        raise ConfigError(f"{where} is empty (0 bytes): the download was cut short")
