"""The site builds without a warning, and what it consists of is there."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs.generate.methods import page_name
from experiments.methods import methods
from tests.docs.blocks import ROOT

pytest.importorskip("material", reason="pip install 'kd_lightning[docs]'")


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to.

    Attributes:
        links: the targets of its links.
        loads: the addresses of scripts, style sheets and images.
        ids: of its elements.
        undescribed: images without a text alternative.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.undescribed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for name in ("id", "name"):
            self.ids.add(values.get(name) or "")
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        is_style = tag == "link" and "stylesheet" in (values.get("rel") or "")
        if is_style and values.get("href"):
            self.loads.append(str(values["href"]))
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loads.append(str(values["src"]))
        if tag == "img" and not values.get("alt"):
            self.undescribed.append(str(values.get("src")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of mkdocs fails its tests."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages of the site by their files."""
    found = {}
    for path in site.rglob("*.html"):
        found[path.resolve()] = Page(path.read_text(encoding="utf-8"))
    assert len(found) > 100
    return found


def test_every_link_within_the_site_has_its_target(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        # The page of unknown addresses has absolute links, which a server resolves.
        if path.name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
            if not target.is_file():
                broken.append(f"{path.name}: {link}")
                continue
            heading = unquote(parts.fragment)
            if heading and target in pages and heading not in pages[target].ids:
                broken.append(f"{path.name}: {link} has no such heading")
    assert broken == []


def test_nothing_is_loaded_from_other_hosts(pages: dict[Path, Page]) -> None:
    outside = set()
    for page in pages.values():
        for address in page.loads:
            if urlsplit(address).netloc:
                outside.add(address)
    assert outside == set()


def test_figures_have_text_alternatives(pages: dict[Path, Page]) -> None:
    assert {
        path.name: page.undescribed for path, page in pages.items() if page.undescribed
    } == {}


def test_every_method_has_a_page_with_its_parts(site: Path) -> None:
    for method in methods():
        text = (site / page_name(method)).read_text(encoding="utf-8")
        for part in ("- Paper:", "## YAML", "## Arguments", "## Measured results"):
            assert part in text, method.name
        for config in method.configs:
            assert (ROOT / config).read_text(encoding="utf-8").rstrip() in text


def test_tables_link_to_pages(site: Path) -> None:
    methods_page = (site / "methods" / "index.html").read_text(encoding="utf-8")
    table = methods_page.partition("<table>")[2]
    assert '<a href="kd.html">KD</a>' in table
    papers = (site / "papers.html").read_text(encoding="utf-8").partition("<table>")[2]
    assert 'href="experiments/hinton2015/results/mnist/results.html"' in papers


def test_formulas_are_mathml(site: Path) -> None:
    html = (site / "methods" / "kd.html").read_text(encoding="utf-8")
    assert "<math" in html
    assert r"\mathrm" not in html.split("</nav>")[-1].replace(r"alttext", "")


def test_every_page_is_markdown_as_well(site: Path) -> None:
    listing = (site / "llms.txt").read_text(encoding="utf-8")
    for name in ("index", "first-steps", "configuration", "methods/dkd"):
        assert f"({name}.md)" in listing
        assert (site / f"{name}.md").is_file()
    for line in listing.splitlines():
        if line.startswith("- ["):
            target = line.partition("](")[2].partition(")")[0]
            assert (site / target).is_file(), line
    # Generated parts are filled in.
    assert ":::" not in (site / "api.md").read_text(encoding="utf-8")
    choose = (site / "which-method.md").read_text(encoding="utf-8")
    assert "<!-- results" not in choose
    assert "| GJSD | 147.0 ± 4.2 (n = 5) |" in choose


def test_the_commands_page_has_the_help_of_every_command(site: Path) -> None:
    text = (site / "command-line.md").read_text(encoding="utf-8")
    assert "## kd fit" in text
    assert "--top-k" in text
    assert "usage: kd init" in text
