"""From a checkpoint folder to a model in memory: safetensors read by memory map, tensor by tensor, into place.

Every parameter must be filled exactly once; whatever is wrong with a folder is one `ConfigError` that names the file
and the tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from trifocal.distributed import SOLO, Group
from trifocal.errors import ConfigError, NotAvailableYetError
from trifocal.families import MODELS
from trifocal.kernels.base import TORCH, Kernels
from trifocal.kernels.pages import empty_together, forget
from trifocal.layers.base import use_kernels
from trifocal.layers.linear import Linear, MergedLinear
from trifocal.layers.slots import Slot
from trifocal.model_spec import ModelSpec, Quantization, read_json
from trifocal.models.base import Model
from trifocal.models.decoder import Decoder
from trifocal.models.packed_cache import PackedCache
from trifocal.quant.awq import OUTPUTS_PER_COLUMN
from trifocal.quant.choose import lay_out_the_rest, quantize_layers, quantize_towers
from trifocal.quant.methods import METHODS, LinearMethods

_INDEX = "model.safetensors.index.json"
_HARMLESS = (".inv_freq", ".masked_bias", ".attn.bias")  # tables that older releases saved with the weights


def load_model(
    spec: ModelSpec, *, dtype: torch.dtype, device: torch.device, load_format: str, seed: int, progress: bool = False,
    quantization: Quantization | None = None, kernels: Kernels = TORCH, methods: LinearMethods = METHODS,
    group: Group = SOLO, packed_cache: bool = False,
) -> Model:  # fmt: skip
    """Build the model of `spec` and fill it, from its folder or (`load_format="dummy"`) with seeded random numbers.

    The result is in eval mode, needs no gradients and holds each weight once, in `dtype` on `device`; linear layers
    are in the format that `quantization` asks for, as `methods` keep it, and layers compute with `kernels`. It is
    the share of this rank of `group`; each rank reads the whole files. With
    `packed_cache` weights are kept in the cache folder as they are laid out. Raises `ConfigError`.
    """
    model = empty_model(spec, dtype, group)
    if quantization:
        names = frozenset[str]() if load_format == "dummy" else _packed_names(model, Path(spec.path))
        with _meta_device(dtype):
            for path, module in model.named_modules():
                if isinstance(module, Decoder):
                    quantize_layers(module, path, quantization, names, methods)
            quantize_towers(model, quantization, methods)
    with _meta_device(dtype):
        lay_out_the_rest(model, methods)
    use_kernels(model, kernels)
    materialize(model, device)
    if load_format == "dummy":
        _fill_randomly(model, seed)
    else:
        wanted = (dtype, quantization, methods.name, group.rank, group.size)
        cache = PackedCache.of(Path(spec.path), wanted, type(methods)) if packed_cache else None
        if cache is None or not cache.restore(model):
            load_weights(model, Path(spec.path), progress=progress)
            if cache is not None:
                cache.keep(model)
    return model.eval()


def load_weights(model: Model, folder: Path, *, progress: bool = False) -> None:
    """Copy the safetensors of `folder` into the parameters of `model`. Raises `ConfigError`."""
    fill(model, weight_slots(model), _tensors(folder, progress), folder.name)


def fill(model: Model, slots: Mapping[str, Slot], tensors: Iterable[tuple[str, str, Tensor]], source: str) -> None:
    """Put `tensors`, (file, name, tensor) each, into the `slots` of `model`, each of which must be filled once.

    Raises `ConfigError`; `source` is the name of the folder, for it.
    """
    filled: dict[str, str] = {}  # our name -> file
    with torch.no_grad():
        for file, name, tensor in tensors:
            ours = model.rename(name)
            if ours is None or name.endswith(_HARMLESS):
                continue
            for part, values in unpack(model, ours, tensor):
                _fill(slots, part, values, f"{file}: tensor {name}", model)
                if part in filled:
                    raise ConfigError(f"{file}: tensor {name} was already loaded from {filled[part]}")
                filled[part] = file
    missing = [name for name in slots if name not in filled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{source}: tensor {missing[0]}{more} is in none of the safetensors files")


def unpack(model: Model, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """As `Model.unpack`, also for tensors of packed weights, whose columns are outputs."""
    owner, _, kind = name.rpartition(".")
    if kind not in OUTPUTS_PER_COLUMN:
        return model.unpack(name, tensor)
    per_column = OUTPUTS_PER_COLUMN[kind]
    parts = output_rows(model, owner, tensor.shape[1] * per_column)
    if len(parts) == 1:
        return ((name, tensor),)
    return [(f"{part}.{kind}", tensor[:, _columns(rows, per_column, name)]) for part, rows in parts.items()]


def output_rows(model: Model, owner: str, out_features: int) -> dict[str, Tensor]:
    """Linear layers that a checkpoint keeps as the one called `owner` -> which of its outputs are theirs, int64."""
    numbered = torch.arange(out_features)[:, None]
    return {name.removesuffix(".weight"): rows[:, 0] for name, rows in model.unpack(f"{owner}.weight", numbered)}


def _columns(rows: Tensor, per_column: int, name: str) -> Tensor:
    if len(rows) % per_column == 0:
        columns = rows.view(-1, per_column)
        if torch.equal(columns, columns[:, :1] // per_column * per_column + torch.arange(per_column)):
            return columns[:, 0] // per_column
    raise NotAvailableYetError("packed weights whose integers hold outputs of several layers ({})", name)


def _packed_names(model: Model, folder: Path) -> frozenset[str]:
    """Names of a folder's packed weights (`….qweight`) as paths of our layers."""
    names: set[str] = set()
    for _, name, tensor in _tensors(folder, progress=False):
        owner, _, kind = (model.rename(name) or "").rpartition(".")
        if kind == "qweight":
            num_outputs = tensor.shape[-1] * OUTPUTS_PER_COLUMN[kind]
            names |= {f"{part}.{kind}" for part in output_rows(model, owner, num_outputs)}
    return frozenset(names)


def _fill(slots: Mapping[str, Slot], name: str, values: Tensor, where: str, model: Model) -> None:
    slot = slots.get(name)
    if slot is None:
        raise ConfigError(f"{where} is unknown to {type(model).__name__}")
    if slot.shape != values.shape:
        raise ConfigError(f"{where} has shape {list(values.shape)}, config.json asks for {list(slot.shape)}")
    slot.copy_(values)


def tensor_names(folder: Path) -> frozenset[str]:
    """Names of all tensors in a folder's shards, from the index or the files' headers; none for a folder without."""
    return frozenset(tensor_files(folder))


def tensor_files(folder: Path) -> dict[str, str]:
    """As `tensor_names`, each with the name of the file that it is in."""
    from safetensors import SafetensorError, safe_open

    expected = _weight_map(folder)
    if expected or not any(folder.glob("*.safetensors")):
        return expected
    files: dict[str, str] = {}
    for file in _files(folder):
        _check_file(folder / file)
        try:
            with safe_open(folder / file, framework="pt") as shard:
                files |= dict.fromkeys(shard.keys(), file)
        except SafetensorError as error:
            raise unreadable(folder / file, error) from None
    return files


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


def empty_model(spec: ModelSpec, dtype: torch.dtype, group: Group = SOLO) -> Model:
    """The model of `spec`, or a rank's share of it, its parameters without memory."""
    with _meta_device(dtype):
        model: Model = MODELS.get(spec.architecture)(spec, group)
    return model


def materialize(model: nn.Module, device: torch.device) -> None:
    """Give parameters memory (uninitialised) and move tables; `Module.to_empty` would lose the tables' values."""
    owners = [(module, name) for module in model.modules() for name, _ in module.named_parameters(recurse=False)]
    layouts = [(each.shape, each.dtype) for each in (getattr(module, name) for module, name in owners)]
    for (module, name), tensor in zip(owners, empty_together(layouts, device), strict=True):
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    for module in model.modules():
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
                        tensor = shard.get_tensor(name)
                        yield where, name, tensor
                        forget(tensor)
                        bar.update()
            except SafetensorError as error:
                raise unreadable(folder / file, error) from None


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
        raise without_weights(folder)
    return files


def unreadable(file: Path, error: Exception) -> ConfigError:
    """The error for a shard that safetensors, or the system, refuses."""
    return ConfigError(f"{file.parent.name}/{file.name} is not a readable safetensors file: {error}")


def without_weights(folder: Path) -> ConfigError:
    """The error for a folder that has no shard."""
    return ConfigError(f"{folder.name} holds no *.safetensors file; other weight formats are not read")


def _check_file(path: Path) -> None:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise ConfigError(f"{where} is missing: the checkpoint is incomplete")
    if path.stat().st_size == 0:
        raise ConfigError(f"{where} is empty (0 bytes): the download was cut short")
