"""Files of the repository that the site includes under the same paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

INCLUDED: dict[str, tuple[str, ...]] = {
    "experiments": ("*.md", "*.yaml", "*.py", "*.png", "*.csv", "*.json"),
    "configs": ("*.yaml",),
    "benchmarks": ("*.md", "*.png", "*.json", "*.jsonl", "*.py"),
    "notebooks": ("*.ipynb",),
}
"""Which files of each folder are in the site."""

SINGLE = ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")

REPLACED = ("experiments/methods.md",)
"""Pages that the site has in another form."""


def included_files() -> Iterator[str]:
    """The paths of all included files, relative to the repository."""
    yield from SINGLE
    for folder, patterns in INCLUDED.items():
        for pattern in patterns:
            for path in sorted((ROOT / folder).rglob(pattern)):
                name = path.relative_to(ROOT).as_posix()
                if name not in REPLACED and "__pycache__" not in name:
                    yield name


def title_of(name: str) -> str:
    """The first heading of an included page.

    Args:
        name: its path, relative to the repository.
    """
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ")
    return name
