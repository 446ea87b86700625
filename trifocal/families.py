"""Which family serves which architecture; nothing of a family is imported before it is asked for.

A family has two faces: a model (torch, in the worker) and a processor (no torch, in the server process). `FAMILIES` is
the one place where a family is declared; `trifocal models` prints it. `DECODERS` are the language models, which all
families share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trifocal.errors import ConfigError
from trifocal.registry import Registry
from trifocal.types import Modality


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint: the architecture that config.json names, and how its tensors may be called."""

    architecture: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """What was found equal to which reference, by which test (`file::function`), and on which weights if on any."""

    what: str
    reference: str
    test: str
    weights: str | None = None


@dataclass(frozen=True)
class Family:
    """Models that share code. `model` and `processor` are `"module:class"`; `language_models` are decoders by name.

    `is_run_as_released`: whether checkpoints as their makers publish them have been run here.
    """

    name: str
    releases: tuple[str, ...]
    formats: tuple[Format, ...]
    model: str
    processor: str
    language_models: tuple[str, ...]
    checks: tuple[Check, ...]
    modalities: tuple[Modality, ...] = ("image", "video")
    is_run_as_released: bool = False


# Language models by architecture: each is served alone, and in whatever family names it as its language model.
DECODERS: Registry[Any] = Registry(
    "language model",
    {
        "Gemma3ForCausalLM": "trifocal.models.gemma3:Gemma3Decoder",
        "GraniteForCausalLM": "trifocal.models.granite:GraniteDecoder",
        "InternLM2ForCausalLM": "trifocal.models.internlm2:InternLM2Decoder",
        "LlamaForCausalLM": "trifocal.models.llama:LlamaDecoder",
        "MiniCPMForCausalLM": "trifocal.models.minicpm:MiniCPMDecoder",
        "MistralForCausalLM": "trifocal.models.llama:MistralDecoder",
        "Phi3ForCausalLM": "trifocal.models.phi3:Phi3Decoder",
        "Qwen2ForCausalLM": "trifocal.models.qwen2:Qwen2Decoder",
        "Qwen3ForCausalLM": "trifocal.models.qwen3:Qwen3Decoder",
    },
)
_LANGUAGE_MODELS = tuple(architecture.removesuffix("ForCausalLM") for architecture in DECODERS)

_PARITY = "tests/models/test_parity.py::test_logits"
_TINY = "tiny random weights"

FAMILIES = (
    Family(
        name="Qwen2.5-VL",
        releases=("3B", "7B", "32B", "72B"),
        formats=(
            Format(
                "Qwen2_5_VLForConditionalGeneration",
                (
                    "visual.*, model.* (released)",
                    "model.visual.*, model.language_model.* (transformers 4.52 and later)",
                ),
            ),
        ),
        model="trifocal.models.qwen2_5_vl.model:Qwen2_5_VL",
        processor="trifocal.models.qwen2_5_vl.processor:Qwen2_5_VLProcessor",
        language_models=("Qwen2",),
        checks=(
            Check("logits", "transformers' Qwen2_5_VLForConditionalGeneration", _PARITY, _TINY),
            Check(
                "patches of pictures, bit for bit",
                "transformers' Qwen2VLImageProcessorPil",
                "tests/models/test_qwen2_5_vl_processor.py::test_photographs_bit_equal",
            ),
            Check(
                "positions in clips",
                "positions computed by the released rule",
                "tests/models/test_qwen2_5_vl_processor.py::test_golden_positions",
            ),
        ),
    ),
    Family(
        name="InternVL",
        releases=("InternVL2", "InternVL2.5"),
        formats=(
            Format("InternVLChatModel", ("vision_model.*, mlp1.*, language_model.* (released)",)),
            Format(
                "InternVLForConditionalGeneration",
                ("vision_tower.*, multi_modal_projector.*, language_model.*", "the same names with the prefix model."),
            ),
        ),
        model="trifocal.models.internvl.model:InternVL",
        processor="trifocal.models.internvl.processor:InternVLProcessor",
        language_models=("InternLM2", "Llama", "Phi3", "Qwen2", "Qwen3"),
        checks=(
            Check(
                "logits, each language model behind either kind of vision tower",
                "transformers' InternVLForConditionalGeneration, with Llama in place of InternLM2",
                _PARITY,
                _TINY,
            ),
            Check(
                "tiles of pictures, bit for bit",
                "transformers' GotOcr2ImageProcessorPil",
                "tests/models/test_internvl_processor.py::test_tiles_are_the_reference_s_byte_for_byte",
            ),
            Check(
                "logits of text",
                "transformers' LlamaForCausalLM",
                "tests/test_real_weights.py::test_logits_are_those_of_transformers",
                "SmolLM2-135M-Instruct as language model, vision tower random",
            ),
        ),
    ),
    Family(
        name="MiniCPM-V",
        releases=("MiniCPM-V 2.0", "MiniCPM-Llama3-V 2.5", "MiniCPM-V 2.6"),
        formats=(Format("MiniCPMV", ("vpm.*, resampler.*, llm.* (released)",)),),
        model="trifocal.models.minicpmv.model:MiniCPMV",
        processor="trifocal.models.minicpmv.processor:MiniCPMVProcessor",
        language_models=("MiniCPM", "Llama", "Qwen2"),
        checks=(
            Check(
                "logits of each version",
                "a model made of parts of transformers and torch, as no library has all of it",
                _PARITY,
                _TINY,
            ),
            Check(
                "slices of pictures, bit for bit",
                "the released rule, written again with PIL",
                "tests/models/test_minicpmv_processor.py::test_slices_byte_for_byte",
            ),
        ),
    ),
    Family(
        name="Language models",
        releases=_LANGUAGE_MODELS,
        formats=tuple(
            Format(architecture, ("names as released and as transformers writes them",)) for architecture in DECODERS
        ),
        model="trifocal.models.text.model:TextModel",
        processor="trifocal.models.text.processor:TextProcessor",
        language_models=_LANGUAGE_MODELS,
        checks=(
            Check(
                "logits of each, with and without windows",
                "transformers' class of that name, with Llama in place of InternLM2 and MiniCPM",
                _PARITY,
                _TINY,
            ),
            Check(
                "logits",
                "transformers' LlamaForCausalLM",
                "tests/test_real_weights.py::test_alone_it_is_the_same_model",
                "SmolLM2-135M-Instruct",
            ),
        ),
        modalities=(),
    ),
)

MODELS: Registry[Any] = Registry(
    "architecture", {each.architecture: family.model for family in FAMILIES for each in family.formats}
)
PROCESSORS: Registry[Any] = Registry(
    "architecture", {each.architecture: family.processor for family in FAMILIES for each in family.formats}
)


def modalities_of(architecture: str) -> tuple[Modality, ...]:
    """The kinds of media that a model of this architecture takes. Raises `ConfigError` as `check_architecture` does."""
    check_architecture(architecture)
    return next(
        family.modalities for family in FAMILIES if any(form.architecture == architecture for form in family.formats)
    )


def check_architecture(architecture: str) -> None:
    """Raise `ConfigError` for an architecture that is not supported, before any weight is read."""
    if architecture not in MODELS:
        with_media = ", ".join(sorted(set(MODELS) - set(DECODERS)))
        raise ConfigError(
            f"config.json: architectures: {architecture!r} is not supported; supported: {with_media}; and "
            f"{', '.join(_LANGUAGE_MODELS)}, each followed by ForCausalLM (the command `trifocal models` tells more)"
        )
