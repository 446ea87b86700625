"""vLLM flags that are accepted and do nothing here: people's start scripts carry them, and no answer depends on them.

Anything that would change an answer, a limit or who may connect is not in this table and is refused as unknown.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from trifocal.cli.flags import flag_of


@dataclass(frozen=True)
class Ignored:
    """A flag without effect: does it take a value, which values are harmless (any, if none are named), and why."""

    name: str
    why: str
    takes_value: bool = False
    harmless: tuple[str, ...] = ()


IGNORED = (
    Ignored("disable_log_requests", "requests are not logged"),
    Ignored("enable_log_requests", "requests are not logged"),
    Ignored("disable_log_stats", "numbers are at /metrics"),
    Ignored("enable_request_id_headers", "x-request-id is always sent"),
    Ignored("disable_frontend_multiprocessing", "the engine always has a process of its own"),
    Ignored("disable_async_output_proc", "there is one output path"),
    Ignored("disable_custom_all_reduce", "there is no custom all-reduce"),
    Ignored("disable_cascade_attention", "there is no cascade attention"),
    Ignored("use_v2_block_manager", "there is one block manager"),
    Ignored("async_scheduling", "there is one scheduler"),
    Ignored("max_log_len", "requests are not logged", takes_value=True),
    Ignored("max_seq_len_to_capture", "graphs are made per batch size", takes_value=True),
    Ignored("max_parallel_loading_workers", "weights are mapped, not copied", takes_value=True),
    Ignored("num_scheduler_steps", "a step is one token", takes_value=True, harmless=("1",)),
    Ignored("num_lookahead_slots", "there is no speculation", takes_value=True, harmless=("0",)),
    Ignored("download_dir", "nothing is downloaded", takes_value=True),
    Ignored("task", "it is the only task", takes_value=True, harmless=("auto", "generate")),
    Ignored("runner", "it is the only runner", takes_value=True, harmless=("auto", "generate")),
    Ignored("tokenizer_mode", "it is the only mode", takes_value=True, harmless=("auto",)),
    Ignored("config_format", "it is the only format", takes_value=True, harmless=("auto", "hf")),
    Ignored("scheduling_policy", "it is the only policy", takes_value=True, harmless=("fcfs",)),
    Ignored("cpu_offload_gb", "nothing is offloaded", takes_value=True, harmless=("0",)),
    Ignored("model_impl", "models are Trifocal's own", takes_value=True, harmless=("auto",)),
)
# Fields of EngineArgs that are there for vLLM's sake alone.
_IGNORED_FIELDS = {
    "swap_space": "preempted requests are computed again, not swapped",
    "revision": "a local folder has one revision",
}


def add_ignored_flags(parser: argparse.ArgumentParser) -> None:
    """Let `parser` accept every flag of the table; the help shows none of them."""
    for item in IGNORED:
        options: dict[str, object] = {"dest": _dest(item), "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        if not item.takes_value:
            options["action"] = argparse.BooleanOptionalAction
        elif item.harmless:
            options["choices"] = item.harmless
        parser.add_argument(flag_of(item.name), **options)  # type: ignore[arg-type]  # one dict for three signatures


def notes(namespace: argparse.Namespace) -> list[str]:
    """One line for each flag that was given and has no effect."""
    found = [f"{flag_of(item.name)} has no effect: {item.why}" for item in IGNORED if hasattr(namespace, _dest(item))]
    return found + [f"{flag_of(k)} has no effect: {why}" for k, why in _IGNORED_FIELDS.items() if hasattr(namespace, k)]


def _dest(item: Ignored) -> str:
    return f"ignored_{item.name}"
