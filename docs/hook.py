"""Connects the generators to mkdocs; `mkdocs.yml` names this file under `hooks`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# mkdocs loads this file by its path, from whatever folder it was started in.
sys.path.insert(0, str(ROOT))

from docs.generate import methods as method_pages  # noqa: E402
from docs.generate.command_line import command_line_page  # noqa: E402
from docs.generate.experiment_list import experiments_page  # noqa: E402
from docs.generate.figures import FIGURES, draw  # noqa: E402
from docs.generate.llms import Copy, with_classes, write_copies  # noqa: E402
from docs.generate.papers import papers_page  # noqa: E402
from docs.generate.reference import reference_page  # noqa: E402
from docs.generate.repository import included_files, title_of  # noqa: E402
from docs.generate.tables import with_tables  # noqa: E402
from experiments.methods import FAMILIES, Results, committed_results, methods  # noqa: E402

_LINK_TO_FOLDER = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)#]*/\)")
_MATH = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)


@dataclass
class Site:
    """What the events of one build share.

    Attributes:
        results: all committed results.
        copies: the Markdown of each page, by its path.
    """

    results: list[Results] = field(default_factory=list)
    copies: dict[str, Copy] = field(default_factory=dict)


SITE = Site()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    # mkdocs serves many builds in one process; each reads the results again.
    SITE.results = committed_results(ROOT / "experiments")
    SITE.copies.clear()
    navigation: list[dict[str, Any]] = config.nav or []
    for entry in navigation:
        if "Methods" in entry:
            entry["Methods"] += _methods_navigation()
        if "Experiments" in entry:
            entry["Experiments"] += _experiments_navigation()
    return config


def _methods_navigation() -> list[dict[str, list[str]]]:
    """The pages of the methods by family."""
    families: dict[str, list[str]] = {}
    for method in methods():
        title = FAMILIES.get(method.cls.family, method.cls.family)
        families.setdefault(title, []).append(method_pages.page_name(method))
    return [{title: pages} for title, pages in families.items()]


def _experiments_navigation() -> list[dict[str, str]]:
    """The pages of the experiments, by their headings."""
    entries = []
    for name in included_files():
        is_page = name.startswith("experiments/") and name.endswith(".md")
        if is_page and "/results/" not in name:
            entries.append({title_of(name): name})
    return entries


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository, and the generated pages and figures."""
    # Under the paths of the repository, so that links between its files hold here, too.
    for name in included_files():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    all_methods = methods()
    names = [file.src_uri for file in files]
    pages = {
        "methods/index.md": method_pages.index_page(all_methods),
        "papers.md": papers_page(all_methods, SITE.results),
        "configuration.md": reference_page(),
        "command-line.md": command_line_page(),
        "experiments/index.md": experiments_page(SITE.results, names),
    }
    for method in all_methods:
        name = method_pages.page_name(method)
        pages[name] = method_pages.method_page(method, SITE.results)
    for name in FIGURES:
        pages[f"figures/{name}"] = draw(name)
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Fill in the tables of results, and keep the text for the Markdown copy."""
    text = with_tables(markdown, SITE.results)
    # A folder of the repository has no page.
    text = _LINK_TO_FOLDER.sub(r"\1", text)
    name = page.file.src_uri
    SITE.copies[name] = Copy(name, str(page.title), with_classes(text))
    return text


def on_page_content(html: str, **_: object) -> str:
    """Turn formulas into MathML, which browsers show without a script."""
    return _MATH.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return convert(unescape(match[2]), display=display)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the Markdown copies and `llms.txt`."""
    write_copies(Path(config.site_dir), list(SITE.copies.values()))
