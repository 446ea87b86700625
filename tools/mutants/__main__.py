"""`python -m tools.mutants RECORDS.jsonl`: draws mutants, runs the tests over them, and goes on where it stopped.

Related test files run first, for every mutant; all other files then run over those that survived. `--suite long` runs
the slow tests too, over what survived the short suite: that is a part of the long one. `--report` tells what was found.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.mutants.draw import Mutant, draw
from tools.mutants.equivalent import reason
from tools.mutants.run import Copy, read, try_one

GROUPS = {
    "kernels in C++": ("trifocal/kernels/cpu/src/*",),
    "kernels in Python": ("trifocal/kernels/*.py", "trifocal/kernels/cpu/*.py"),
    "attention": ("trifocal/attention/*.py",),
    "scheduler": ("trifocal/engine/scheduler.py", "trifocal/engine/plan_builder.py"),
    "block manager": ("trifocal/engine/block_manager.py",),
    "sampler": ("trifocal/worker/sampler.py",),
    "processors": (
        "trifocal/models/*/processor.py", "trifocal/models/*/tiling.py", "trifocal/models/*/slicing.py",
        "trifocal/models/*/preprocess.py", "trifocal/models/*/options.py", "trifocal/media/patches.py",
        "trifocal/prompt/processor.py",
    ),
}  # fmt: skip
COUNTS = {"kernels in C++": 24, "kernels in Python": 7, "processors": 12}
OTHERS = 8


def run(records_path: Path, copy: Copy, suite: str, groups: list[str], seed: int) -> None:
    """Append a record for each mutant and stage that has none yet."""
    options = ["-m", "slow"] if suite == "long" else []
    records = read(records_path)

    def result(mutant: Mutant, suite: str, stage: str) -> str | None:
        for each in records:
            is_it = all(each[name] == getattr(mutant, name) for name in ("path", "start", "new"))
            if is_it and (each["suite"], each["stage"]) == (suite, stage):
                return str(each["result"])
        return None

    def settle(mutant: Mutant, stage: str) -> str:
        found = result(mutant, suite, stage)
        if found is None:
            record = {"suite": suite, **try_one(mutant, copy, stage, options)}
            records.append(record)
            with records_path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            found = str(record["result"])
            print(suite, stage, mutant.path, mutant.line, mutant.kind, found, record["test"], flush=True)
        return found

    drawn = draw(copy.tree, {name: GROUPS[name] for name in groups}, seed)
    chosen: list[Mutant] = []
    if suite == "short":
        counts: Counter[str] = Counter()
        while short := [name for name in groups if counts[name] < COUNTS.get(name, OTHERS)]:
            for name in short:
                mutant = drawn[name].pop(0)
                if why_equivalent(copy.tree, asdict(mutant)) is not None:
                    continue
                if settle(mutant, "related") in ("killed", "survived"):
                    counts[name] += 1
                    chosen.append(mutant)
        for mutant in chosen:
            if settle(mutant, "related") == "survived":
                settle(mutant, "others")
    else:
        everything = [each for mutants in drawn.values() for each in mutants]
        left = [each for each in everything if result(each, "short", "others") == "survived"]
        for stage in ("related", "others"):
            for mutant in left:
                if stage == "related" or settle(mutant, "related") == "survived":
                    settle(mutant, stage)


def report(records: list[dict[str, Any]]) -> str:
    """A line for each group, and one for each mutant that the short suite leaves alive."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in records:
        if each["result"] in ("killed", "survived"):
            best[each["path"], each["start"], each["new"]] = each  # later stages and suites come later
    same = {key: why for key, each in best.items() if (why := why_equivalent(Path.cwd(), each))}
    lines, total = [f"{key[0]}: {why}: cannot be noticed" for key, why in same.items()], Counter[str]()
    best = {key: each for key, each in best.items() if key not in same}
    for group in GROUPS:
        counts: Counter[str] = Counter()
        for each in best.values():
            if each["group"] == group:
                counts[f"{each['suite']} {each['result']}"] += 1
        short, long = counts["short killed"], counts["long killed"]
        total.update(mutants=counts.total(), short=short, both=short + long)
        lines.append(
            f"{group}: {counts.total()} mutants, killed by the short suite {short}, by the long {short + long}"
        )
    lines.append(f"together: {total['mutants']}, {total['short']}, {total['both']}")
    for each in best.values():
        if (each["suite"], each["result"]) != ("short", "killed"):
            change = f"{' '.join(each['old'].split())} -> {' '.join(each['new'].split())}"
            lines.append(
                f"{each['path']}:{each['line']}: {change}: {each['suite']} {each['result']} {each['test'] or ''}"
            )
    return "\n".join(lines)


def why_equivalent(tree: Path, record: dict[str, Any]) -> str | None:
    """Why nobody can notice a mutant, or None where somebody should."""
    line = (tree / record["path"]).read_text().splitlines()[record["line"] - 1]
    return reason(record["path"], line, record["old"], record["new"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("--suite", choices=["short", "long"], default="short")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/mutants"), help="where the copy of the tree lies")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        run(given.records, Copy(Path.cwd(), given.folder), given.suite, given.groups, given.seed)
    print(report(read(given.records)))


if __name__ == "__main__":
    main()
