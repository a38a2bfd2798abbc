"""Renders a page as one HTML file that needs nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kd_lightning.errors import printable
from kd_lightning.report.blocks import Page
from kd_lightning.report.figures import ID_PREFIX

Value = TypeVar("Value")


def render(page: Page) -> str:
    """The page as HTML.

    Args:
        page: its texts are escaped; only figures bring markup of their own.
    """
    environment = Environment(
        loader=PackageLoader("kd_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["indented"] = _indented
    environment.filters["with_own_ids"] = _numbering()
    template = environment.get_template("page.html.jinja")
    return template.render(page=page)


def _shown(value: Value) -> Value | str:
    """A value as the page shows it: names lose their control characters."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


def _numbering() -> Callable[[Markup], Markup]:
    """A function that gives each figure ids that no other figure of the page has."""
    numbers = itertools.count(1)

    def with_own_ids(svg: Markup) -> Markup:
        # Only ids change, so the text stays safe.
        return Markup(str(svg).replace(ID_PREFIX, f"figure-{next(numbers)}-"))

    return with_own_ids


def _indented(line: str) -> Markup:
    """A line of a file with its indentation, which `printable` would remove."""
    text = line.lstrip(" ")
    indentation = " " * (len(line) - len(text))
    return Markup(indentation) + Markup.escape(printable(text))
