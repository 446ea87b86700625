"""Configuration: `EngineArgs` as the user wrote them, `resolve` turns them into a frozen `EngineConfig`.

"auto" and `None` exist in `EngineArgs` only; every field of `EngineConfig` is decided. Each part has a module, with its
arguments, its config and how one becomes the other. Environment variables are read into the parts when these are made,
and nowhere later (`envs` names the exceptions). No torch here: the server process resolves the configuration before any
device code is loaded.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from trifocal.config import envs
from trifocal.config.arguments import fit_fields
from trifocal.config.cache import CacheArgs, CacheConfig, cache_config
from trifocal.config.devices import detect_device, device_named
from trifocal.config.media import MediaArgs, MediaConfig, media_config
from trifocal.config.model import ModelArgs, ModelConfig, model_config, read_spec
from trifocal.config.parallel import ParallelArgs, ParallelConfig, parallel_config
from trifocal.config.scheduling import SchedulingArgs, SchedulingConfig, scheduling_config
from trifocal.config.supervision import SupervisionConfig
from trifocal.config.vllm_options import OPTIONS, PYTHON_OPTIONS, UNUSED_FIELDS
from trifocal.errors import ConfigError
from trifocal.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineArgs(MediaArgs, ParallelArgs, CacheArgs, SchedulingArgs, ModelArgs):  # fields come in the reverse order
    """Arguments of the engine, names and defaults as vLLM's; each is a flag of the server and a keyword of `LLM`.

    Field metadata carries the help text and its group, so that the command line is made from this class alone.
    """

    def __post_init__(self) -> None:
        fit_fields(self)

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> EngineArgs:
        """Keywords of `LLM(...)`, those of vLLM's that have no effect here among them; None always means the default.

        Raises `ConfigError` for an unknown one, naming the nearest known one, and for a value that cannot be used.
        """
        known = {item.name: item for item in fields(cls)}
        options = {option.name: option for option in (*OPTIONS, *PYTHON_OPTIONS)}
        given: dict[str, Any] = {}
        notes = [
            f"{name} has no effect: {why}"
            for name, why in UNUSED_FIELDS.items()
            if kwargs.get(name) not in (None, known[name].default)
        ]
        for name, value in kwargs.items():
            if name in known:
                if value is not None and value not in known[name].metadata.get("means_none", ()):
                    given[name] = _with_shorthand(known[name], value)
            elif name in options:
                notes.append(options[name].note(value, f"{name}={value!r:.200}", name) or "")
            else:
                near = get_close_matches(name, [*known, *options], n=1)
                raise ConfigError(f"unknown argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if "model" not in given:
            raise ConfigError("no model is given; give the folder of a checkpoint: LLM(model=...)")
        for note in filter(None, notes):
            logger.warning("%s", note)
        return cls(**given)


def _with_shorthand(item: Field[Any], value: Any) -> Any:
    """vLLM takes a number in place of some JSON objects."""
    key = item.metadata.get("number_is")
    return {key: value} if key and type(value) is int else value


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything decided. What only the device can tell (number of KV blocks) is measured by the worker later."""

    model: ModelConfig
    cache: CacheConfig
    scheduling: SchedulingConfig
    parallel: ParallelConfig
    media: MediaConfig
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)


def resolve(args: EngineArgs) -> EngineConfig:
    """Check the arguments against each other and the checkpoint, and read the environment.

    Raises `ConfigError` naming the argument and the remedy.
    """
    from trifocal.families import check_architecture, modalities_of

    envs.check()
    for note in envs.notes():
        logger.warning("%s", note)
    name = detect_device(args.device)
    device = device_named(name)
    parallel = parallel_config(args, name)
    spec = read_spec(args)
    check_architecture(spec.architecture)
    scheduling = scheduling_config(args, spec.max_model_len, device)
    model = model_config(args, spec, device, scheduling.max_model_len)
    return EngineConfig(
        model=model,
        cache=cache_config(args, model.dtype, device),
        scheduling=scheduling,
        parallel=parallel,
        media=media_config(args, modalities_of(spec.architecture)),
    )
