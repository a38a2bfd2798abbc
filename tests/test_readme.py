"""The README is one screen per question, in order, and links to what exists."""

from __future__ import annotations

import re

from tests.docs.blocks import README, ROOT

TEXT = README.read_text(encoding="utf-8")
MOST_LINES = 150


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= MOST_LINES


def test_the_questions_are_in_order() -> None:
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert headings == [
        "The first minute",
        "Ten lines of YAML, ten of Python",
        "Methods",
        "Your data, your model, your teacher",
        "Reproduce",
        "Speed",
        "Documentation",
        "License and citation",
    ]


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_page_of_the_documentation_is_a_click_away() -> None:
    # The first page, and through it all others.
    assert "docs/index.md" in TEXT
