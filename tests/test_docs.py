"""Files that the documents name are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_files_that_documents_name_exist() -> None:
    folders = ("trifocal", "tests", "benchmarks", "tools", "examples")
    files = (
        "\n".join(f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.*")) + "\n"
    )
    missing = []
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        for name in re.findall(r"`([\w/.-]+\.(?:py|h|cpp))`", page.read_text(encoding="utf-8")):
            if f"/{name}\n" not in files and not name.startswith("modeling_"):  # transformers' own
                missing.append(f"{page.name}: {name}")
    assert missing == []
