"""Which decoder a checkpoint asks for, by the names in its config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trifocal.distributed import SOLO, Group
from trifocal.errors import ConfigError
from trifocal.families import DECODERS
from trifocal.model_spec import ModelSpec
from trifocal.models.decoder import Decoder
from trifocal.models.loader import tensor_names

_SUFFIX = "ForCausalLM"
_HEADS = ("lm_head.weight", "output.weight")  # Llama's name, and InternLM2's


def make_decoder(spec: ModelSpec, group: Group = SOLO) -> Decoder:
    """This rank's share of the decoder that the text part of config.json names by architecture, or else by model_type.

    Raises `ConfigError` where nobody here knows it.
    """
    given = spec.text.extra.get("architectures")
    name = str(given[0] if isinstance(given, list) and given else spec.text.model_type)
    known = {each.removesuffix(_SUFFIX).lower(): each for each in DECODERS}
    architecture = known.get(name.removesuffix(_SUFFIX).lower())
    if architecture is None:
        raise ConfigError(
            f"config.json: a language model of kind {name!r} is not supported; supported: {', '.join(sorted(known))}"
        )
    made: Decoder = DECODERS.get(architecture)(replace(spec.text, is_tied=is_tied(spec)), group)
    return made


def is_tied(spec: ModelSpec) -> bool:
    """Whether the embedding serves as output head: where the files hold no head.

    The flag alone cannot be trusted: it stands at the top level or in the language model's part depending on the
    release, is left out where it equals a default, and that default has changed. It counts if there are no files.
    """
    says = spec.hf_config.get("tie_word_embeddings", spec.text.extra.get("tie_word_embeddings"))
    names = tensor_names(Path(spec.path))
    if not names:
        return bool(says)
    return not any(name.endswith(_HEADS) for name in names) and says is not False
