"""The folder that is written: it appears whole or not at all, with everything but weights as it was."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from trifocal.errors import ConfigError
from trifocal.model_spec import LLM_KEYS, read_json

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx", ".index.json")


def check_places(source: Path, target: Path) -> None:
    """Raise `ConfigError` for a source that is no folder, or a target that is taken or within the source."""
    if not source.is_dir():
        raise ConfigError(f"PATH {str(source)!r} is not a folder; give the path of a local checkpoint folder")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"OUT {str(target)!r} is not empty; give a new folder")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"OUT {str(target)!r} is a file; give a new folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"OUT {str(target)!r} lies within PATH; give a folder elsewhere")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place at the end, and is removed if there is no good end."""
    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ConfigError(f"OUT {str(target)!r} cannot be written: {error.strerror}") from None
    try:
        yield staging
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)
        if target.exists():
            target.rmdir()  # empty
        staging.rename(target)
    except OSError as error:
        reason, file = error.strerror or error, error.filename
        if file is not None and not any(map(Path(file).is_relative_to, (staging, target))):
            raise ConfigError(f"{str(file)!r} cannot be read: {reason}") from None
        raise ConfigError(f"OUT {str(target)!r} cannot be written: {reason}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_rest(source: Path, folder: Path) -> None:
    """Everything that is neither weights nor config.json: tokenizer, processor, generation settings, code."""
    for file in sorted(source.iterdir()):
        is_weight = file.name.endswith(_WEIGHTS)
        if file.is_file() and not is_weight and not file.name.startswith(".") and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)


def write_config(source: Path, folder: Path, group: int, kept: list[str]) -> None:
    """config.json with a `quantization_config`, which other readers know as AutoAWQ's.

    `kept` are the names of modules that are not quantized. Types become float16, which readers with a GPU insist on;
    in the files, what is not quantized keeps the type it had.
    """
    config = deepcopy(read_json(source / "config.json", required=True))
    parts: list[dict[str, Any]] = [config, *(config[key] for key in LLM_KEYS if isinstance(config.get(key), dict))]
    for part in parts:
        for name in ("dtype", "torch_dtype"):
            if part.get(name) is not None:
                part[name] = "float16"
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": kept,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
