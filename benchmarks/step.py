"""Where the time of a step goes: `python benchmarks/step.py FOLDER`.

Runs sequences of random tokens through `LLM` and prints, for steps in which each gets one token, the median
milliseconds from one step to the next, those spent inside compiled kernels, and what the memory gives in the same
minute. With --prefill the steps are those that compute a whole prompt. FOLDER needs no weights with
--load-format dummy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from trifocal.kernels.cpu.library import load
from trifocal.llm import LLM
from trifocal.sampling_params import SamplingParams
from trifocal.types import StepPlan, StepResult
from trifocal.worker.model_runner import ModelRunner


@dataclass
class Step:
    """One step of the worker; times in seconds."""

    tokens: int
    began: float
    took: float
    kernels: Counter[str]


inside: Counter[str] = Counter()  # seconds by kernel, of the step that runs
steps: list[Step] = []


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, its time added up."""

    def call(*args: Any) -> Any:
        started = time.perf_counter()
        result = function(*args)
        inside[name] += time.perf_counter() - started
        return result

    return call


def watch_steps() -> None:
    """Note every step that the worker makes."""
    execute = ModelRunner.execute

    def watched(self: ModelRunner, plan: StepPlan) -> StepResult:
        started = time.perf_counter()
        inside.clear()
        result = execute(self, plan)
        tokens = sum(each.num_tokens for each in plan.scheduled)
        steps.append(Step(tokens, started, time.perf_counter() - started, Counter(inside)))
        return result

    ModelRunner.execute = watched  # type: ignore[method-assign]


def random_prompts(count: int, tokens: int) -> list[dict[str, Any]]:
    """No two alike."""
    return [{"prompt_token_ids": torch.randint(0, 256, (tokens,)).tolist()} for _ in range(count)]


def memory_speed(read: Callable[..., Any]) -> float:
    """Bytes a second."""
    memory = torch.ones(1 << 30, dtype=torch.uint8)
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        read(memory.data_ptr(), memory.nbytes, torch.get_num_threads())
        taken.append(time.perf_counter() - started)
    return memory.nbytes / statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--quantization")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--prefill", action="store_true", help="prompts of --context tokens, one after the other")
    parser.add_argument("--enforce-eager", action="store_true", help="no replay: kernels are told apart")
    args = parser.parse_args()
    library = load()
    if library is None:
        raise SystemExit("there are no kernels to measure")
    read = library.read
    for name, kernel in library.kernels.items():
        kernel.function = timed(name, kernel.function)
    library.replay = timed("replay", library.replay)
    watch_steps()
    started = time.perf_counter()
    with LLM(
        args.folder,
        dtype="bfloat16",
        quantization=args.quantization,
        load_format=args.load_format,
        max_model_len=4096,
        enforce_eager=args.enforce_eager,
    ) as llm:
        print(f"ready in {time.perf_counter() - started:.1f} s")
        params = SamplingParams(temperature=0, max_tokens=1 if args.prefill else args.steps, ignore_eos=True)
        if args.prefill:
            for _ in range(12):
                llm.generate(random_prompts(1, args.context), params, use_tqdm=False)
        else:
            llm.generate(random_prompts(args.batch, args.context), params, use_tqdm=False)
    speed = memory_speed(read)
    if args.prefill:
        most = max(step.tokens for step in steps)  # long prompts are cut
        chosen = [(step, step.took) for step in steps if step.tokens == most]
    else:
        chosen = [(one, after.began - one.began) for one, after in pairwise(steps) if one.tokens == args.batch]
    chosen = chosen[len(chosen) // 4 : -1]
    whole = statistics.median(took for _, took in chosen)
    kernels = statistics.median(sum(step.kernels.values()) for step, _ in chosen)
    print(f"step {1e3 * whole:.2f} ms, outside kernels {1e3 * (whole - kernels):.2f} ms ({1 - kernels / whole:.0%})")
    for name in chosen[0][0].kernels:
        print(f"  {name:20} {1e3 * statistics.median(step.kernels[name] for step, _ in chosen):7.2f} ms")
    print(f"memory {speed / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
