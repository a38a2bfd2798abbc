"""The generators of pages, without mkdocs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.arguments import NO_DEFAULT, arguments_of, arguments_table
from docs.generate.figures import FIGURES, draw
from docs.generate.llms import Copy, summary_of, with_classes, write_copies
from docs.generate.markdown import cell, table
from docs.generate.methods import index_page, method_page, paper_link
from docs.generate.papers import papers_page
from docs.generate.reference import SECTIONS, class_of, reference_page
from docs.generate.repository import included_files
from docs.generate.tables import with_tables
from experiments.methods import committed_results, methods
from kd_lightning.losses import KD
from kd_lightning.runs.options import RunOptions
from kd_lightning.training import DistillationModule
from tests.docs.blocks import ROOT

RESULTS = committed_results(ROOT / "experiments")


def by_name(cls: type) -> dict[str, tuple[str, str, str]]:
    """Type, default and meaning of each argument."""
    return {
        each.name: (each.type, each.default, each.meaning) for each in arguments_of(cls)
    }


def test_arguments_come_from_the_class_and_its_bases() -> None:
    arguments = by_name(KD)
    assert arguments["temperature"][:2] == ("float", "4.0")
    assert arguments["temperature"][2].startswith("T, greater than 0.")
    # Of DistillLoss, to which KD passes its other arguments.
    assert arguments["weight"][1] == "1.0"
    assert arguments["weight"][2]
    assert "base" not in arguments


def test_one_entry_of_a_docstring_may_describe_several_arguments() -> None:
    arguments = by_name(DistillationModule)
    assert arguments["student"][1] == NO_DEFAULT
    assert arguments["optimizer"][1] == "default_optimizer"
    assert arguments["optimizer"][2] == "see ClassifierModule."
    assert arguments["scheduler"][2] == "see ClassifierModule."


def test_the_attributes_of_a_dataclass_are_its_arguments() -> None:
    arguments = by_name(RunOptions)
    assert arguments["root"][:2] == ("str", "'runs'")
    assert arguments["root"][2] == "folder of all runs."


def test_a_pipe_in_a_type_does_not_end_a_cell() -> None:
    (line,) = [
        line for line in arguments_table(RunOptions) if line.startswith("| `name`")
    ]
    assert r"`str \| None`" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 5


def test_cells_keep_links_and_escape_pipes_once() -> None:
    assert table(["a"], [["[x](y.md) |"]]) == ["| a |", "| --- |", r"| [x](y.md) \| |"]
    assert cell(cell("a | b\nc")) == r"a \| b c"


def test_tables_of_generated_pages_have_links() -> None:
    (method,) = [each for each in methods() if each.name == "KD"]
    pages = [index_page(methods()), papers_page(methods(), RESULTS)]
    pages.append(method_page(method, RESULTS))
    for page in pages:
        assert re.search(r"^\| \[[^]]+\]\([^)]+\) \|", page, re.MULTILINE)
        # An escaped bracket is shown as text, and the link is lost.
        assert "\\](" not in page


def test_most_arguments_are_described() -> None:
    empty = []
    for paths in SECTIONS.values():
        for path in paths:
            for name, (_, _, meaning) in by_name(class_of(path)).items():
                if not meaning:
                    empty.append(f"{path}.{name}")
    assert empty == []


def test_the_reference_has_every_section() -> None:
    text = reference_page()
    assert all(f"## {title}" in text for title in SECTIONS)
    assert "### CIFAR100DataModule" in text
    assert "### Flip" in text
    assert (
        "| `--run.test no\\|last\\|best` | no | read the test set at the end |" in text
    )
    assert "### CIFARResNet" in text


def test_papers_are_linked() -> None:
    assert paper_link("A 2015, arXiv 1503.02531") == (
        "A 2015, [arXiv 1503.02531](https://arxiv.org/abs/1503.02531)"
    )
    assert "(https://doi.org/10.1098/rspa.1946.0056)" in paper_link(
        "Jeffreys 1946, doi 10.1098/rspa.1946.0056"
    )
    assert paper_link("") == "none"


def test_the_index_of_papers_has_numbers_and_gaps() -> None:
    text = papers_page(methods(), RESULTS)
    assert "| teacher | test errors | 67 | 67.8 ± 5.9 (n = 5) |" in text
    assert "not run" in text


def test_the_page_of_a_method_links_its_results() -> None:
    (method,) = [each for each in methods() if each.name == "DKD"]
    text = method_page(method, RESULTS)
    assert (
        "](../experiments/crd2020/results/cifar10-resnet20-resnet8/results.md)" in text
    )
    assert "time 0.97 of kd" in text


def test_a_marker_becomes_a_table_in_the_order_of_errors() -> None:
    text = with_tables(
        "a\n<!-- results: demo [student-alone, distilled] -->\nb", RESULTS
    )
    rows = [line.split("|")[1].strip() for line in text.splitlines() if "±" in line]
    assert rows == ["distilled", "student-alone"]


@pytest.mark.parametrize(
    ("marker", "message"),
    [("nothing", "no committed results"), ("demo [nobody]", "no run 'nobody'")],
)
def test_a_marker_without_results_is_an_error(marker: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_tables(f"<!-- results: {marker} -->", RESULTS)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_each_time(name: str) -> None:
    first = draw(name)
    assert first.startswith("<?xml")
    assert draw(name) == first


def test_included_files_are_there_and_replaced_ones_are_not() -> None:
    names = list(included_files())
    assert len(names) == len(set(names))
    assert "experiments/methods.md" not in names
    assert "experiments/hinton2015/README.md" in names
    assert all((ROOT / name).is_file() for name in names)


def test_the_summary_is_the_first_sentence_of_prose() -> None:
    assert summary_of("# Title\n\n| a |\n\nOne thing. Another.") == "One thing"
    assert summary_of("A et al. 2018 train it. So do we.") == "A et al. 2018 train it"
    assert summary_of("# Title") == ""


def test_classes_are_described_in_copies() -> None:
    text = with_classes("# A\n\n::: kd_lightning.runs.options.RunOptions\n\nend")
    assert ":::" not in text
    assert "### kd_lightning.runs.options.RunOptions" in text
    assert "| `root` |" in text
    assert text.endswith("\n\nend")


def test_copies_are_listed(tmp_path: Path) -> None:
    write_copies(tmp_path, [Copy("a/b.md", "B", "# B\n\nText of it.")])
    assert (tmp_path / "a" / "b.md").read_text() == "# B\n\nText of it."
    assert "- [B](a/b.md): Text of it\n" in (tmp_path / "llms.txt").read_text()
