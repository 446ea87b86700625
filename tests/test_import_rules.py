"""Who may import whom (docs/architecture.md), kept by reading the sources: nothing is imported to test this.

Imports inside functions count; those under `if TYPE_CHECKING:` do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "trifocal"

# The ground floor: everybody may import these, and they import nothing above themselves.
GROUND = {
    "",
    "types",
    "errors",
    "sampling_params",
    "model_spec",
    "registry",
    "families",
    "config",
    "log",
    "metrics",
    "subprocesses",
    "malloc",
    "threads",
    "helpers",
}
CLIENT = {"cli.client", "cli.flags", "cli.local_server"}

# A part is named by the longest prefix in this table; the order is the order of the floors, from the top down.
MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"cli"},
    "entrypoints": {"cli"},  # vLLM's module path for `trifocal serve`
    "bench": {"bench", "demo", "llm", *CLIENT},
    "demo": {"demo", *CLIENT},
    "cli": {"cli", "quantize", "api.app"},
    "cli.client": set(),
    # Both front ends turn messages and media into prompts; that is the work of `prompt`, not of the engine.
    "llm": {"engine", "prompt", "media", "tokenizer"},
    "api": {"api", "http", "engine.async_engine", "engine.output", "prompt", "media", "tokenizer"},
    "http": {"http", "prompt", "media"},  # knows no API and no engine
    "engine": {"engine", "executor", "tokenizer"},  # tokens become text in engine.detokenizer
    "executor": {"executor", "worker"},
    "worker": {
        "worker",
        "models",
        "layers",
        "attention",
        "quant",
        "platforms",
        "distributed",
        "kernels.base",  # the sampler is no layer, but has kernels too
        "kernels.graphs",
    },
    # All that a kind of device brings: memory, kernels, linear methods, attention.
    "platforms": {"platforms", "quant", "layers", "attention", "distributed", "kernels"},
    # A program of its own beside the engine: samples become prompts, and go through the model layer by layer.
    "quantize": {"quantize", "quant", "models", "layers", "attention", "prompt", "media"},
    "models": {
        "models",
        "layers",
        "attention",
        "quant",
        "prompt",
        "media",
        "tokenizer",
        "distributed",
        "kernels.base",
        "kernels.pages",
    },
    "prompt": {"prompt", "media", "tokenizer"},
    "media": {"media"},
    "tokenizer": {"tokenizer"},
    "quant": {"quant", "layers", "distributed", "kernels.base", "kernels.blocks", "kernels.int4"},
    "layers": {"layers", "distributed", "kernels.base"},
    "attention": {"attention", "kernels"},
    "distributed": set(),
    "kernels": {"kernels"},  # compiled code and what torch does where there is none; a platform chooses
    "kernels.base": {"kernels.int4"},
    "kernels.int4": {"kernels.blocks"},
    "kernels.blocks": set(),
    "kernels.graphs": set(),
    "kernels.pages": set(),
    "config": {"config"},
    "helpers": {"helpers"},
    **{name: set() for name in sorted(GROUND - {"config", "helpers"})},
}
PLANNERS = (
    "engine.scheduler",
    "engine.block_manager",
    "engine.sequence",
    "engine.encoder_cache",
    "engine.plan_builder",
    "engine.steps_in_flight",
    "engine.flights",
    "engine.limits",
)
DEVICE_WORD = re.compile(r"(?<![a-z])(cuda|npu|nccl)(?![a-z])", re.IGNORECASE)
QUANT_WORD = re.compile(r"(?<![a-z])(awq|gptq|marlin)(?![a-z])", re.IGNORECASE)
MAY_NAME_DEVICES = (
    "platforms",
    "config.devices",  # how they are found
    "config.parallel",  # the help text of --device
    "config.vllm_options",  # vLLM's names
    "cli.serve",  # the help text names the allocators' variables
)


def module_name(path: Path, root: Path = ROOT) -> str:
    """`trifocal/engine/stop.py` -> `engine.stop`, a package by its own name, `trifocal` itself as the empty name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}


def imports(source: str, *, top_level_only: bool = False, with_types: bool = False) -> Iterator[str]:
    """Full names of what a source imports; `from a import b` yields `a.b` (b may be a module)."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not with_types:
                continue
            if top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are written out in full here"
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield from walk(child)

    return walk(ast.parse(source))


def part_of(name: str) -> str:
    """The part that a module belongs to: the longest prefix that MAY_IMPORT knows."""
    part = name
    while part not in MAY_IMPORT:
        part = part.rpartition(".")[0]
        assert part, f"{name} is a new part of trifocal: give it a row in MAY_IMPORT"
    return part


def within(name: str, parts: set[str]) -> bool:
    return any(name == part or (part and name.startswith(part + ".")) for part in parts)


def breaches(module: str, source: str) -> list[str]:
    """Imports of `source` that its part may not make."""
    allowed = MAY_IMPORT[part_of(module)] | GROUND
    wrong = []
    for full in imports(source):
        if full != "trifocal" and not full.startswith("trifocal."):
            continue
        name = full.removeprefix("trifocal").removeprefix(".")
        target = name if name in SOURCES else name.rpartition(".")[0]
        if not within(target, allowed):
            wrong.append(f"{module} imports {full}")
    return wrong


def named(source: str, word: re.Pattern[str]) -> list[str]:
    """Identifiers and texts (docstrings and comments excepted) in which `word` occurs."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        texts = {
            ast.Name: lambda n: n.id,
            ast.Attribute: lambda n: n.attr,
            ast.FunctionDef: lambda n: n.name,
            ast.ClassDef: lambda n: n.name,
            ast.Constant: lambda n: n.value if isinstance(n.value, str) and id(n) not in docstrings else "",
        }
        text = texts.get(type(node), lambda n: "")(node)  # type: ignore[no-untyped-call]
        if word.search(text):
            found.append(text)
    return found


def device_tests(source: str) -> list[str]:
    """Comparisons with a device's name, or of a device's type, and `is_cpu` and its like."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Compare | ast.Attribute) else ""
        is_test = isinstance(node, ast.Compare) and re.search(r"'(cpu|cuda|npu)'|device(_type|\.type)", text)
        if is_test or re.search(r"\.is_(cpu|cuda|npu)$", text):
            found.append(text)
    return found


def reaches_torch(module: str, sources: dict[str, str]) -> list[str] | None:
    """A chain of top-level imports from `module` to torch, or None."""
    chains, seen = [[module]], {module}
    while chains:
        chain = chains.pop()
        for full in imports(sources[chain[-1]], top_level_only=True):
            if full == "torch" or full.startswith("torch."):
                return [*chain, full]
            name = full.removeprefix("trifocal").removeprefix(".")
            packages = [".".join(name.split(".")[:count]) for count in range(1, name.count(".") + 2)]
            for target in packages if full.startswith("trifocal") else []:
                if target in sources and target not in seen:
                    seen.add(target)
                    chains.append([*chain, target])
    return None


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which module imports which, for types alone too."""
    found: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        for full in imports(source, with_types=True):
            if full == "trifocal" or full.startswith("trifocal."):
                target = full.removeprefix("trifocal").removeprefix(".")
                target = target if target in sources else target.rpartition(".")[0]
                found[name] |= {target} & (sources.keys() - {name})
    return found


def circle(arrows: dict[str, set[str]]) -> list[str] | None:
    """A chain of arrows that ends where it begins, or None."""
    done: set[str] = set()

    def walk(chain: list[str]) -> list[str] | None:
        for target in sorted(arrows[chain[-1]] - done):
            if target in chain:
                return [*chain[chain.index(target) :], target]
            if found := walk([*chain, target]):
                return found
        done.add(chain[-1])
        return None

    return next((found for name in arrows if name not in done and (found := walk([name]))), None)


def test_there_is_no_circle() -> None:
    assert circle(graph(SOURCES)) is None


def test_arrows_point_down() -> None:
    """The rows of MAY_IMPORT are floors: a part imports from those below it, and from its own."""
    floors = list(MAY_IMPORT)
    upward = []
    for part, allowed in MAY_IMPORT.items():
        package = part.partition(".")[0]
        for other in allowed - GROUND:
            if other.partition(".")[0] != package and floors.index(part_of(other)) < floors.index(part):
                upward.append(f"{part} imports {other}")
    assert upward == []


def test_layers() -> None:
    assert [breach for module, source in SOURCES.items() for breach in breaches(module, source)] == []


def test_no_device_is_named() -> None:
    places = {name: source for name, source in SOURCES.items() if not within(name, set(MAY_NAME_DEVICES))}
    assert {name: words for name, source in places.items() if (words := named(source, DEVICE_WORD))} == {}


def test_no_device_is_asked_for() -> None:
    """What differs between devices, a platform knows: nobody compares a device's name, but those who find devices."""
    asking = {
        name: asked
        for name, source in SOURCES.items()
        if not within(name, {"platforms.cpu", "kernels", "config.devices"}) and (asked := device_tests(source))
    }
    assert asking == {}


def test_models_name_no_quantization() -> None:
    places = {name: source for name, source in SOURCES.items() if name.startswith("models.")}
    assert {name: words for name, source in places.items() if (words := named(source, QUANT_WORD))} == {}


PROCESSORS = [name for name in SOURCES if name.startswith("models.") and name.endswith(".processor")]
TORCH_FREE = [
    *PLANNERS,
    *PROCESSORS,
    "cli.serve",
    "cli.models",
    "api.app",
    "engine.async_engine",
    "demo.run",
    "bench.serve",
]


def test_torch_free() -> None:
    for module in TORCH_FREE:
        assert reaches_torch(module, SOURCES) is None
        assert not [name for name in imports(SOURCES[module]) if name.split(".")[0] == "torch"], module


def test_a_processor_stays_in_the_server_process() -> None:
    for module in PROCESSORS:
        family = module.rpartition(".")[0]
        ours = [name.removeprefix("trifocal.") for name in imports(SOURCES[module]) if name.startswith("trifocal.")]
        allowed = {"types", "errors", "config", "model_spec", "prompt", "media", "tokenizer", family}
        assert [name for name in ours if not within(name, allowed)] == [], module


def test_video_codecs_are_loaded_by_decoder_processes_alone() -> None:
    loading = {name for name, source in SOURCES.items() if any(full.split(".")[0] == "av" for full in imports(source))}
    assert loading == {"media.decode.video_file"}
    users = {
        name for name, source in SOURCES.items() if "trifocal.media.decode.video_file.VideoFile" in imports(source)
    }
    assert users == {"media.decode.process"}
    started = {name for name, source in SOURCES.items() if "trifocal.media.decode.process.serve" in imports(source)}
    assert started == set(), "it is a program"


def test_heic_is_loaded_by_decoder_processes_alone() -> None:
    """On a file's bytes, which `image.open_bytes` is given there only."""

    def users(full: str) -> set[str]:
        word = full.rpartition(".")[2]
        return {name for name, source in SOURCES.items() if word in source and full in imports(source)}

    assert users("pillow_heif") == {"media.decode.heif"}
    assert users("trifocal.media.decode.heif") == {"media.decode.image"}
    assert users("trifocal.media.decode.image.open_bytes") == {"media.decode.animation"}


# The rules themselves must be able to fail.


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("api.openai.chat", "from trifocal.worker.sampler import Sampler"),
        ("api.openai.chat", "from trifocal.engine import scheduler"),
        ("worker.worker", "def late():\n    import trifocal.engine.scheduler"),
        ("models.qwen2_5_vl.model", "from trifocal.platforms import get_platform"),
        ("types", "from trifocal import llm"),
    ],
)
def test_a_breach_is_found(module: str, source: str) -> None:
    assert breaches(module, source)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    assert graph({"a": "from trifocal.b import x", "b": "if TYPE_CHECKING:\n    import trifocal.a"}) == {
        "a": {"b"},
        "b": {"a"},
    }


def test_type_checking_is_exempt() -> None:
    assert breaches("types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trifocal.llm") == []


def test_torch_is_found_through_others() -> None:
    sources = {"a": "from trifocal.b import x", "b": "import trifocal.c", "c": "import torch.nn", "d": "import numpy"}
    assert reaches_torch("a", sources) == ["a", "b", "c", "torch.nn"]
    assert reaches_torch("d", sources) is None
    assert reaches_torch("a", {**sources, "b": "def late():\n    import trifocal.c"}) is None


def test_words_are_found() -> None:
    assert named("x = tensor.cuda()\ny = 'nccl'\nis_npu = 1", DEVICE_WORD) == ["nccl", "is_npu", "cuda"]
    assert named('"""About cuda."""\ninput_ids = 1\ncudagraph_sizes = 2', DEVICE_WORD) == []


def test_questions_about_devices_are_found() -> None:
    for source in ("x = 1 if device == 'cpu' else 2", "if tensor.device.type != name: pass", "y = tensor.is_cpu"):
        assert len(device_tests(source)) == 1, source
    assert device_tests("torch.device('cpu')\nif item.type == 'float': pass") == []


def test_a_new_part_needs_a_row() -> None:
    with pytest.raises(AssertionError, match="row in MAY_IMPORT"):
        part_of("unheard.of")
