"""What a browser would find in a page: requests, figures, pictures and texts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Element:
    """A start tag with its attributes, and the text up to its end tag."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class PageReader(HTMLParser):
    """Collects the elements of a page in order."""

    elements: list[Element] = field(default_factory=list)
    unclosed: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        element = Element(tag, {name: value or "" for name, value in attributes})
        self.elements.append(element)
        if tag not in VOID:
            self.unclosed.append(element)

    def handle_startendtag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        element = Element(tag, {name: value or "" for name, value in attributes})
        self.elements.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed, f"</{tag}> closes nothing"
        assert self.unclosed[-1].tag == tag, f"</{tag}> closes {self.unclosed[-1].tag}"
        self.unclosed.pop()
        # Cells and paragraphs are apart on the screen.
        if tag in ("td", "th", "li", "p", "caption", "title", "text"):
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        for element in self.unclosed:
            element.text += data

    def of_tag(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def headings(self) -> list[str]:
        return [element.text for element in self.of_tag("h2")]

    def section(self, title: str) -> str:
        """The text of the section with this heading."""
        for element in self.of_tag("section"):
            if element.text.strip().startswith(title):
                return " ".join(element.text.split())
        raise AssertionError(f"no section {title!r} in {self.headings()}")


def read(path: Path) -> PageReader:
    """Parse a page, and check what holds for every page."""
    text = path.read_text(encoding="utf-8")
    page = PageReader()
    page.feed(text)
    page.close()
    assert page.unclosed == []
    check_requests(page, text)
    check_figures(page)
    check_ids(page)
    return page


def check_requests(page: PageReader, text: str) -> None:
    """Nothing on the page makes a browser ask for anything."""
    for tag in ("script", "iframe", "object", "embed", "base", "form"):
        assert page.of_tag(tag) == []
    for element in page.elements:
        for name, value in element.attributes.items():
            assert not name.startswith("on"), f"{element.tag} has {name}"
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#")), f"{element.tag} {name}={value}"
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def check_figures(page: PageReader) -> None:
    """Every figure and every picture has a text alternative."""
    identified = {}
    for element in page.elements:
        if "id" in element.attributes:
            identified[element.attributes["id"]] = element
    for svg in page.of_tag("svg"):
        assert svg.attributes["role"] == "img"
        title = identified[svg.attributes["aria-labelledby"]]
        assert title.tag == "title"
        assert len(title.text.split()) > 3
    for image in page.of_tag("img"):
        assert image.attributes["alt"]


def check_ids(page: PageReader) -> None:
    """No two elements have the same id, and each reference leads to an element."""
    ids = []
    references = []
    for element in page.elements:
        if "id" in element.attributes:
            ids.append(element.attributes["id"])
        for name, value in element.attributes.items():
            if name.endswith("href") and value.startswith("#"):
                references.append(value[1:])
            references += re.findall(r"url\(#([^)]+)\)", value)
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)
