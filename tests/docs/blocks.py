"""The pages that people write, and the code blocks in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
COMMANDED = [
    README,
    *PAGES,
    *sorted((ROOT / "experiments").glob("*/*.md")),
    *sorted((ROOT / "benchmarks").glob("*/README.md")),
]
"""The files whose `kd` commands are checked; those of CONTRIBUTING.md have a test of their own."""


def named(path: Path) -> str:
    """The path of a page, relative to the repository, as the id of a test."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The contents of all blocks of a language."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def kd_commands(path: Path) -> list[str]:
    """The `kd` commands of a page, each in one line and without its comment."""
    commands = []
    for block in blocks(path, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ kd "):
                command = re.sub(r"\s+#.*", "", line.removeprefix("$ "))
                commands.append(" ".join(command.split()))
    return commands
