"""`llms.txt`, the list of all pages for language models, and a Markdown copy of each page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from docs.generate.arguments import arguments_table, body_of
from docs.generate.reference import class_of

HEADER = """\
# kd_lightning

> A research framework for knowledge distillation on PyTorch Lightning: a small network (the student)
> learns from a large one or an ensemble (the teacher). Every page below is Markdown.

"""

# "et al. 2018" ends no sentence.
_END_OF_SENTENCE = re.compile(r"(?<! al)\. ")
_CLASS = re.compile(r"^::: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Copy:
    """A page as Markdown.

    Attributes:
        path: of the file in the site.
        title: of the page.
        text: its Markdown, with generated parts filled in.
    """

    path: str
    title: str
    text: str


def write_copies(site: Path, copies: Sequence[Copy]) -> None:
    """Write the Markdown copies and `llms.txt` into the built site.

    Args:
        site: folder of the site.
        copies: in the order of the site.
    """
    lines = []
    for copy in copies:
        target = site / copy.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(copy.text, encoding="utf-8")
        about = summary_of(copy.text)
        lines.append(f"- [{copy.title}]({copy.path}){': ' if about else ''}{about}")
    text = HEADER + "## Pages\n\n" + "\n".join(lines) + "\n"
    (site / "llms.txt").write_text(text, encoding="utf-8")


def with_classes(text: str) -> str:
    """A page with the classes that mkdocstrings would describe, as Markdown.

    Args:
        text: the page's Markdown, with lines such as `::: kd_lightning.types.Batch`.
    """

    def described(match: re.Match[str]) -> str:
        cls = class_of(match[1])
        lines = [f"### {match[1]}", "", *body_of(cls), *arguments_table(cls)]
        return "\n".join(lines)

    return _CLASS.sub(described, text)


def summary_of(text: str) -> str:
    """The first sentence of the first paragraph of a page; empty if there is none.

    Args:
        text: the page's Markdown.
    """
    for paragraph in text.split("\n\n"):
        first = paragraph.strip()
        if first and (first[0].isalnum() or first[0] == "`"):
            sentence = _END_OF_SENTENCE.split(" ".join(first.split()))[0]
            return sentence.rstrip(".:")
    return ""
