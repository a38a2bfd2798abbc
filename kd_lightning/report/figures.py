"""Draws figures as SVG elements that a page can hold in its own text.

The ink of a figure is the page's text color: it can be read on dark and light pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from markupsafe import Markup

from kd_lightning.errors import printable
from kd_lightning.report.blocks import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

WIDTH = 5.4
"""Of a figure, in inches: at 400 pixels its letters keep about their size."""

_INK = "#010203"
"""A color that nothing else has; it becomes the page's text color."""

ID_PREFIX = "kd-figure-of-this-page-"
"""How the ids of every figure begin; the page replaces it by one that is unique."""

COLORS = (
    *("#3b82c4", "#d9722b", "#3a9d5d", "#c9484f", "#8f6cc4"),
    *("#8c6d52", "#c55fa5", "#8a9099", "#9c9a2b", "#2aa3b0"),
)
"""Of lines and points; each can be seen on white and on black."""

DASHES = ("-", "--", "-.", ":", "-", "--", "-.", ":", "-", "--")
"""Of lines, so that colors are not all that tells them apart."""


def draw(
    height: float,
    alternative: str,
    plot: Callable[[Drawing], None],
    caption: str = "",
) -> Figure:
    """Draw a figure.

    Args:
        height: in inches.
        alternative: what the figure shows, in words, with its most important numbers.
        plot: fills an empty figure.
        caption: below the figure.
    """
    from matplotlib.figure import Figure as Drawing

    with _style():
        # Without pyplot there is no list of open figures that would grow.
        drawing = Drawing(figsize=(WIDTH, height), layout="constrained")
        plot(drawing)
        text = io.StringIO()
        drawing.savefig(text, format="svg", transparent=True)
    return Figure(_for_page(text.getvalue(), printable(alternative)), caption)


@contextmanager
def _style() -> Iterator[None]:
    """Let matplotlib draw for a page."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context(
        {
            "axes.edgecolor": _INK,
            "axes.grid": True,
            "axes.labelcolor": _INK,
            "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=DASHES),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": _INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "font.size": 9,
            "grid.alpha": 0.2,
            "grid.color": _INK,
            "legend.frameon": False,
            "legend.labelcolor": _INK,
            # Text stays text, which is smaller than outlines and can be searched.
            "svg.fonttype": "none",
            # Equal figures of two reports are equal files.
            "svg.hashsalt": "kd_lightning",
            "text.color": _INK,
            # A dollar sign in the name of a class begins no formula.
            "text.parse_math": False,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    ):
        yield


def _for_page(svg: str, alternative: str) -> Markup:
    """An SVG file of matplotlib as an element of a page.

    Args:
        svg: the whole file.
        alternative: the text that stands for it.
    """
    # The prolog and the metadata name addresses that no browser needs.
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # Ids are names within the whole page, and matplotlib numbers them per figure.
    element = element.replace(' id="', f' id="{ID_PREFIX}')
    element = element.replace('href="#', f'href="#{ID_PREFIX}')
    element = element.replace("url(#", f"url(#{ID_PREFIX}")
    element = element.replace(_INK, "currentColor")
    opening, _, rest = element.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None, "matplotlib writes a viewBox"
    name = f"{ID_PREFIX}title"
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} '
        f'role="img" aria-labelledby="{name}">'
    )
    title = f'<title id="{name}">{Markup.escape(alternative)}</title>'
    return Markup(start + title + rest)
