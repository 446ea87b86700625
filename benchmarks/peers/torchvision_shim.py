"""Makes torchvision importable beside a torch for CPUs: a peer's own Python runs this file once, when it is set up.

The package index has torchvision's operators for CUDA only, so they do not load, and then the import itself fails: it
describes the shapes of two that do not exist. Peers import the package and call none, so the two are declared.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

DECLARED = """

# By Trifocal's scripts, because the operators have not been loaded and their shapes are described anyhow.
_declared = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _declared.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def complaint() -> str:
    """What importing it says; empty if it can be imported."""
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return (done.stderr.strip() or "no word") if done.returncode else ""


def main() -> int:
    """Returns the exit status."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        print("torchvision is not installed", file=sys.stderr)
        return 1
    extension = Path(spec.origin).with_name("extension.py")
    if complaint() and DECLARED not in extension.read_text(encoding="utf-8"):
        with extension.open("a", encoding="utf-8") as file:
            file.write(DECLARED)
    left = complaint()
    print(left, end="", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
