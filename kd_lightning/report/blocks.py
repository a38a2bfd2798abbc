"""The parts of a report's page. The template decides how each of them looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Paragraph:
    """A sentence or several.

    Attributes:
        text: plain text.
        missing: whether the text says what the page lacks, and why.
    """

    kind: ClassVar[str] = "paragraph"
    text: str
    missing: bool = False


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        headings: one per column.
        lines: one text per column.
        caption: what the table shows.
    """

    kind: ClassVar[str] = "table"
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        svg: an `<svg>` element with `role="img"` and a text alternative.
        caption: below the drawing.
    """

    kind: ClassVar[str] = "figure"
    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Lines of a file, behind a summary that opens them.

    Attributes:
        summary: names the content.
        lines: of the file; their indentation is kept.
    """

    kind: ClassVar[str] = "code"
    summary: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        uri: the image itself, as a `data:` URI.
        alternative: what it shows, in words.
    """

    uri: str
    alternative: str


@dataclass(frozen=True)
class Share:
    """A part of a distribution.

    Attributes:
        name: of the class.
        share: its probability, in [0, 1].
    """

    name: str
    share: float


@dataclass(frozen=True)
class Sample:
    """A test sample that a person can look at.

    Attributes:
        caption: what is notable about it.
        pictures: of an image, a spectrogram or a segmented image.
        text: of a text sample; empty for others.
        shares: the largest probabilities that a network gives to classes.
    """

    caption: str
    pictures: Sequence[Picture] = ()
    text: str = ""
    shares: Sequence[Share] = ()


@dataclass(frozen=True)
class Samples:
    """Samples next to each other.

    Attributes:
        items: the samples.
        caption: how they were chosen.
    """

    kind: ClassVar[str] = "samples"
    items: Sequence[Sample]
    caption: str = ""


@dataclass(frozen=True)
class Legend:
    """What colors stand for.

    Attributes:
        entries: each color, such as #3b82c4, with its meaning.
    """

    kind: ClassVar[str] = "legend"
    entries: Sequence[tuple[str, str]]


Block = Paragraph | Table | Figure | Code | Samples | Legend


@dataclass(frozen=True)
class Panel:
    """What a section reports about one run; panels of a section are side by side.

    Attributes:
        title: the run's label; empty if the section is about all runs.
        blocks: the content.
    """

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: the heading.
        panels: at least one.
    """

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
        title: names the runs or the experiments.
        subtitle: what made the page, and when.
        sections: in order.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]


def missing(text: str) -> Paragraph:
    """A note about what the page lacks.

    Args:
        text: what is missing and why.
    """
    return Paragraph(text, missing=True)
