"""Runs test suites over mutants, one at a time, in a copy of the tree with its own environment and kernels."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.mutants.draw import Mutant
from trifocal.config.envs import cache_folder

# Test files that a fault in a source should fail first: the first pattern that fits the path counts.
RELATED = (
    (r"src/sampling", ("kernels/test_sampling.py", "worker")),
    (r"src/(attention|attend|segments)", ("attention", "kernels/test_capture.py", "engine/test_int8_cache.py")),
    (r"src/(int4|int8|dot|bytes)", ("kernels/test_quantized.py", "kernels", "quant")),
    (r"kernels/", ("kernels", "attention", "quant", "layers")),
    (r"attention/", ("attention", "engine/test_int8_cache.py", "worker", "kernels/test_capture.py")),
    (r"worker/", ("worker", "kernels/test_sampling.py", "test_llm.py")),
    (r"engine/", ("engine/test_scheduler*.py", "engine/test_block_manager.py", "engine/test_engine.py", "worker")),
    (r"models/(\w+)/", (r"models/test_\1*", "models/test_processor_contract.py", "models/test_part_options.py")),
    (r"", ("models/test_*_processor.py", "models/test_processor_contract.py")),
)
CPU_SECONDS = 900  # of one process: a loop that never ends counts as noticed
WALL_SECONDS = 5400


class Copy:
    """A copy of a tree's tracked files, an environment that finds it alone, and a folder for compiled kernels."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self.folder = tree, folder / "tree"
        shutil.rmtree(folder, ignore_errors=True)
        names = subprocess.run(["git", "-C", tree, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, self.folder / name)
        # Some tests ask git for the list of files.
        for command in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=-", "-c", "user.email=-", "commit", "-qm", "-"],
        ):
            subprocess.run(["git", *command], cwd=self.folder, check=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.folder / ".venv"], check=True)
        (packages,) = (self.folder / ".venv" / "lib").glob("python*/site-packages")
        found = [each for each in sys.path if Path(each).name in ("site-packages", "dist-packages")]
        (packages / "tree.pth").write_text("\n".join([str(self.folder), *found]) + "\n")
        self.python = self.folder / ".venv" / "bin" / "python"
        self.environ = {**os.environ, "TRIFOCAL_CACHE_ROOT": str(folder / "cache"), "OMP_WAIT_POLICY": "passive"}
        shutil.copytree(cache_folder("kernels"), folder / "cache" / "kernels", dirs_exist_ok=True)  # saves compiling
        self.original = self.kernels()

    def write(self, path: str, text: str) -> None:
        """Replace a source, and let nobody read what was compiled of it before."""
        source = self.folder / path
        source.write_text(text)
        for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"):
            compiled.unlink()

    def kernels(self) -> bytes | None:
        """The compiled kernels of the present sources; None if they do not compile."""
        code = (
            "from trifocal.kernels.cpu.build import *\n"
            "try: print(build(choose('1', cpu_features())))\n"
            "except BuildError as error: raise SystemExit(f'{error}')"
        )
        done = subprocess.run(
            [self.python, "-c", code], cwd=self.folder, env=self.environ, capture_output=True, text=True
        )
        return Path(done.stdout.strip()).read_bytes() if done.returncode == 0 else None

    def forget_kernels(self) -> None:
        """Remove all but those of the unchanged sources."""
        for library in (self.folder.parent / "cache" / "kernels").glob("*.so"):
            if library.read_bytes() != self.original:
                library.unlink()

    def first_failure(self, arguments: list[str], deselected: list[str]) -> str | None:
        """Run pytest until a test fails. Returns its id, or None if all pass."""
        command = [self.python, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *arguments]
        command += [f"--deselect={each}" for each in deselected]

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))

        child = subprocess.Popen(
            command, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True, preexec_fn=limit,
        )  # fmt: skip
        try:
            output, _ = child.communicate(timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return "time limit"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)
            child.communicate()
        if child.returncode in (0, 5):  # 5: nothing was selected
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
        return failed[1] if failed else f"exit status {child.returncode}"


def tests_of(mutant: Mutant, copy: Copy, stage: str) -> list[str]:
    """Files and folders of tests that are related to a mutant, or all others."""
    pattern, folders = next(each for each in RELATED if re.search(each[0], mutant.path))
    match = re.search(pattern, mutant.path)
    assert match is not None
    related: list[Path] = []
    for folder in folders:
        for found in sorted((copy.folder / "tests").glob(match.expand(folder))):
            files = [found] if found.is_file() else sorted(found.rglob("test_*.py"))
            related += [file for file in files if file not in related]
    if stage == "related":
        return [str(each.relative_to(copy.folder)) for each in related]
    others = sorted(set((copy.folder / "tests").rglob("test_*.py")) - set(related))
    return [str(each.relative_to(copy.folder)) for each in others]


def try_one(mutant: Mutant, copy: Copy, stage: str, options: list[str]) -> dict[str, Any]:
    """Put a mutant in, run its tests, take it out. Returns the record of it."""
    text = (copy.tree / mutant.path).read_text()
    assert text[mutant.start : mutant.end] == mutant.old, f"{mutant.path} has changed since the mutants were drawn"
    started, test = time.monotonic(), None
    copy.write(mutant.path, text[: mutant.start] + mutant.new + text[mutant.end :])
    try:
        result = "survived"
        if mutant.path.endswith(".py"):
            try:
                compile((copy.folder / mutant.path).read_text(), mutant.path, "exec")
            except SyntaxError:
                result = "not built"
        else:
            built = copy.kernels()
            result = "not built" if built is None else "same code" if built == copy.original else result
        deselected: list[str] = []
        while result == "survived":
            test = copy.first_failure([*options, *tests_of(mutant, copy, stage)], deselected)
            if test is None:
                break
            if stage == "related" or "::" not in test or copy.first_failure([*options, test], []):
                result = "killed"
            else:
                deselected.append(test)  # it fails now and then, with or without the mutant
    finally:
        copy.write(mutant.path, text)
        if not mutant.path.endswith(".py"):
            copy.forget_kernels()
    seconds = round(time.monotonic() - started)
    return {**asdict(mutant), "stage": stage, "result": result, "test": test, "seconds": seconds}


def read(path: Path) -> list[dict[str, Any]]:
    """The records of earlier runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
