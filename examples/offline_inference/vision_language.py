"""Offline inference on pictures or a clip, without a server.

    python examples/offline_inference/vision_language.py --model-type qwen2_5_vl --num-prompts 4 --modality image

As it stands it runs the built-in model on its own samples. For a model of yours either edit the model's function and
`SAMPLING` below, or say it with flags: --model PATH --image PICTURE --text "What is in it?" --max-model-len 4096 ...
Every argument of the engine is a flag; a flag wins over what is written here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from trifocal import LLM, EngineArgs, SamplingParams
from trifocal.cli.flags import Parser, add_flags
from trifocal.demo.run import MODEL, SAMPLES
from trifocal.errors import ConfigError
from trifocal.model_spec import ModelSpec

SAMPLING = SamplingParams(
    max_tokens=64,
    temperature=0.0,  # 0: always the likeliest token
    top_k=-1,
    top_p=1.0,
    repetition_penalty=1.0,
    ignore_eos=False,
)


@dataclass(frozen=True)
class ModelRequest:
    """How to start the engine for a model, what to ask it, and tokens that end an answer beside its own."""

    engine_args: EngineArgs
    prompts: list[str]
    stop_token_ids: list[int] | None = None


def run_qwen2_5_vl(questions: list[str], modality: str) -> ModelRequest:
    """Qwen2.5-VL: edit the model's folder and the engine's arguments here."""
    engine_args = EngineArgs(
        model=str(MODEL),  # folder of the weights, in Hugging Face format
        max_num_seqs=8,  # requests processed at once
        max_model_len=None,  # input and output tokens together; None: what the model allows
        max_num_batched_tokens=None,  # tokens computed in one step
        dtype="auto",
        tensor_parallel_size=1,
        block_size=None,
        gpu_memory_utilization=0.9,
        trust_remote_code=False,
        mm_processor_kwargs={},  # e.g. {"min_pixels": 28 * 28, "max_pixels": 1280 * 28 * 28}
        limit_mm_per_prompt={modality: 1},
    )
    placeholder = {"image": "<|image_pad|>", "video": "<|video_pad|>"}[modality]
    prompts = [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{placeholder}<|vision_end|>{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
        for question in questions
    ]
    return ModelRequest(engine_args, prompts)


def run_minicpmv(questions: list[str], modality: str) -> ModelRequest:
    """MiniCPM-V 2.6: edit the model's folder and the engine's arguments here, or give --model."""
    engine_args = EngineArgs(
        model="MiniCPM-V-2_6",  # folder of the weights, in Hugging Face format
        max_num_seqs=8,
        mm_processor_kwargs={},  # e.g. {"max_slice_nums": 4}
        limit_mm_per_prompt={modality: 1},
    )
    placeholder = {"image": "(<image>./</image>)", "video": "(<video>./</video>)"}[modality]
    # As the template of 2.6 has it. 2.5 has that of Llama 3, 2.0 writes "<用户>…<AI>".
    prompts = [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{placeholder}\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in questions
    ]
    return ModelRequest(engine_args, prompts)  # the tokens that end its answers are known by version


def run_internvl_chat(questions: list[str], modality: str) -> ModelRequest:
    """InternVL 2, 2.5 and 3: give the model's folder here or as --model; there is no built-in one."""
    engine_args = EngineArgs(
        model="InternVL2_5-1B",  # folder of the weights, in Hugging Face format
        max_num_seqs=5,
        max_model_len=8192,  # a large picture takes 13 tiles of 256 tokens
        mm_processor_kwargs={},  # e.g. {"max_dynamic_patch": 4}; {"num_frames": 8} for clips
        limit_mm_per_prompt={modality: 1},
    )
    # `<image>` or `<video>`; the models over Phi-3 write <|user|>, <|end|> and <|assistant|> instead.
    prompts = [
        f"<|im_start|>user\n<{modality}>\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in questions
    ]
    return ModelRequest(engine_args, prompts)


@dataclass(frozen=True)
class ModelType:
    """What writes its prompts, and the architectures (in `config.json`) that understand them."""

    request: Callable[[list[str], str], ModelRequest]
    architectures: tuple[str, ...]


MODEL_TYPES = {
    "qwen2_5_vl": ModelType(run_qwen2_5_vl, ("Qwen2_5_VLForConditionalGeneration",)),
    "internvl_chat": ModelType(run_internvl_chat, ("InternVLChatModel", "InternVLForConditionalGeneration")),
    "minicpmv": ModelType(run_minicpmv, ("MiniCPMV",)),
}


def parse_args() -> argparse.Namespace:
    """The script's own flags and all of the engine's."""
    parser = Parser(description="Offline inference on pictures or a clip.")
    parser.add_argument(
        "-m", "--model-type", choices=list(MODEL_TYPES), default="qwen2_5_vl", help="default: qwen2_5_vl"
    )
    parser.add_argument("--num-prompts", type=int, default=4, help="prompts given at once (default: 4)")
    parser.add_argument("--modality", choices=["image", "video"], default="image", help="default: image")
    parser.add_argument("--num-frames", type=int, default=16, help="frames taken of the video (default: 16)")
    parser.add_argument("--image", metavar="PATH", help="picture (default: a built-in sample)")
    parser.add_argument("--video", metavar="PATH", help="video (default: a built-in sample)")
    parser.add_argument("--text", help="question for every prompt (default: the sample's)")
    add_flags(parser, EngineArgs)
    return parser.parse_args()


def sample(modality: str) -> tuple[str, list[str]]:
    """The path of a built-in sample of `modality`, and the questions that go with it."""
    rows = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    media = next(row["media"] for row in rows if row["modality"] == modality and len(row["media"]) == 1)
    return str(SAMPLES / media[0]), [row["question"] for row in rows if row["media"] == media]


def read_video(path: str, num_frames: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """At most `num_frames` RGB frames spread evenly over the clip, uint8 [n, height, width, 3]."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int)
    return np.stack([frames[index] for index in chosen])


def read_media(args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The picture or the clip, and the questions about it."""
    path, questions = (args.video if args.modality == "video" else args.image), []
    if path is None:
        path, questions = sample(args.modality)
    questions = [args.text] if args.text else questions or [f"What is the content of this {args.modality}?"]
    try:
        data = read_video(path, args.num_frames) if args.modality == "video" else Image.open(path).convert("RGB")
    except (OSError, ValueError) as error:  # PyAV's errors are of these, and PIL's
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"--{args.modality} {path}: {what}") from None
    return data, [questions[index % len(questions)] for index in range(args.num_prompts)]


def check_model_type(name: str, folder: str) -> None:
    """Raise `ConfigError` where the folder holds a model of another type, which would not understand the prompts."""
    architecture = ModelSpec.from_checkpoint(folder).architecture
    fitting = [other for other, kind in MODEL_TYPES.items() if architecture in kind.architectures]
    if name not in fitting:
        hint = f"use --model-type {fitting[0]}" if fitting else f"this script knows {', '.join(MODEL_TYPES)}"
        raise ConfigError(f"--model-type {name}: the model in {folder} is a {architecture}; {hint}")


def run(args: argparse.Namespace) -> None:
    """Build the prompts, generate, print."""
    if args.num_prompts < 1 or args.num_frames < 1:
        raise ConfigError("--num-prompts and --num-frames must be at least 1")
    other = "image" if args.modality == "video" else "video"
    if getattr(args, other) is not None:
        raise ConfigError(f"--{other} is not used with --modality {args.modality}; give --modality {other}")
    data, questions = read_media(args)
    request = MODEL_TYPES[args.model_type].request(questions, args.modality)
    given = {name: value for name, value in vars(args).items() if name in EngineArgs.__dataclass_fields__}
    engine_args = replace(request.engine_args, **given)
    check_model_type(args.model_type, engine_args.model)
    llm = LLM(**asdict(engine_args))
    try:
        inputs = [{"prompt": prompt, "multi_modal_data": {args.modality: data}} for prompt in request.prompts]
        outputs = llm.generate(inputs, replace(SAMPLING, stop_token_ids=request.stop_token_ids))
    finally:
        llm.shutdown()
    for question, output in zip(questions, outputs, strict=True):
        print(f"{question}\n  {output.outputs[0].text}")


def main() -> int:
    """Exit status 2 and one line for what the user must mend."""
    try:
        run(parse_args())
    except (ConfigError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
