"""The formats of text files: what is detected and reported, and what each malformed line gives."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.data.text.datamodule import TextDataModule
from kd_lightning.data.text.dialect import Dialect
from kd_lightning.data.text.files import canonical_label, read_rows, read_table
from kd_lightning.data.text.labels import (
    classes_spelled_alike,
    rare_classes,
    read_labels,
)
from kd_lightning.errors import UserError

NOTHING = ""
SEMICOLONS = "detected semicolons between fields (data.delimiter)"
QUOTES = "detected quotation marks around fields (data.quoted)"

DETECTED: dict[str, tuple[str, str, list[list[str]], str]] = {
    "commas": ("a.csv", 'x,"1, 2"\ny,3\n', [["x", "1, 2"], ["y", "3"]], NOTHING),
    "semicolons": ("a.csv", "x, y;1\nz;2\n", [["x, y", "1"], ["z", "2"]], SEMICOLONS),
    "quoted semicolons": (
        "a.csv",
        'x;"1;2"\ny;3\n',
        [["x", "1;2"], ["y", "3"]],
        SEMICOLONS,
    ),
    "decimal commas": (
        "a.csv",
        "x;y\n1,5;2\n2,5;3\n",
        [["x", "y"], ["1,5", "2"], ["2,5", "3"]],
        SEMICOLONS,
    ),
    "tabs in csv": ("a.csv", "x\t1\ny\t2\n", [["x", "1"], ["y", "2"]], "detected tabs"),
    "bars": ("a.csv", "x|1\ny|2\n", [["x", "1"], ["y", "2"]], "detected vertical bars"),
    "two candidates": ("a.csv", "x;1|2\ny;3|4\n", [["x;1|2"], ["y;3|4"]], NOTHING),
    "one column": ("a.csv", "x\ny\n", [["x"], ["y"]], NOTHING),
    "commas in tsv": (
        "a.tsv",
        "x,1\ny,2\n",
        [["x", "1"], ["y", "2"]],
        "detected commas",
    ),
    "sentences with commas": (
        "a.tsv",
        "so, x\t1\ny\t2\n",
        [["so, x", "1"], ["y", "2"]],
        NOTHING,
    ),
    "sentences with marks": (
        "a.tsv",
        'he said " no\t0\n"yes\t1\n"a" or "b"\t1\n',
        [['he said " no', "0"], ['"yes', "1"], ['"a" or "b"', "1"]],
        NOTHING,
    ),
    "one sentence within marks": (
        "a.tsv",
        '"no"\t0\nyes\t1\n',
        [['"no"', "0"], ["yes", "1"]],
        NOTHING,
    ),
    "quoted sentences": (
        "a.tsv",
        'x\ty\n"no"\t0\n"yes"\t1\n',
        [["x", "y"], ["no", "0"], ["yes", "1"]],
        QUOTES,
    ),
    "doubled marks": (
        "a.tsv",
        'no\t0\n"say ""a"""\t1\n',
        [["no", "0"], ['say "a"', "1"]],
        QUOTES,
    ),
    "quoted tab": (
        "a.tsv",
        'x\ty\n"a\tb"\t0\n"c"\t1\n',
        [["x", "y"], ["a\tb", "0"], ["c", "1"]],
        QUOTES,
    ),
}


@pytest.mark.parametrize(
    ("name", "text", "rows", "report"), DETECTED.values(), ids=DETECTED
)
def test_the_format_is_detected_and_reported(
    name: str,
    text: str,
    rows: list[list[str]],
    report: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    # Spreadsheet programs end lines in two characters.
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert [fields for _, fields in read_rows(path)] == rows
    out = capsys.readouterr().out
    assert report in out
    assert out.count("\n") == (0 if report == NOTHING else 1)


def test_the_format_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('"a;b";1\n"c";2\n')
    given = {
        Dialect(";", quoted=True): [["a;b", "1"], ["c", "2"]],
        Dialect(";", quoted=False): [['"a', 'b"', "1"], ['"c"', "2"]],
        Dialect("tab", quoted=False): [['"a;b";1'], ['"c";2']],
    }
    for dialect, rows in given.items():
        assert [fields for _, fields in read_rows(path, dialect)] == rows
    assert capsys.readouterr().out == ""
    for delimiter in ("", ";;", "\n", '"'):
        with pytest.raises(UserError, match=r"data\.delimiter must be one character"):
            Dialect(delimiter)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_long_fields(name: str, tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = tmp_path / name
    delimiter = "," if name == "a.csv" else "\t"
    path.write_text(f'"{"x" * 200_000}"{delimiter}0\n"y"{delimiter}1\n')
    texts = read_table(path, 0, 1, None, ["0", "1"]).texts
    assert [len(text) for (text,) in texts] == [200_000, 1]
    assert csv.field_size_limit() == limit


MALFORMED = {
    "one tab too many": (
        "a.tsv",
        "a\t0\nb\tc\t1\n",
        "line 2: 3 fields, but the first line has 2",
    ),
    "one tab too many, valid label": ("a.tsv", "a\t0\nb\t1\t1\n", "line 2: 3 fields"),
    "one tab too few": ("a.tsv", "a\t0\n\nb 1\n", "line 3: there is no column 1"),
    "one comma too many": (
        "a.csv",
        "a,0\nb, c,1\n",
        "line 2: 3 fields, but the first line has 2",
    ),
    "mark within a field": ("a.csv", 'a,0\n"b"c,1\n', "set data.quoted=false"),
    "unclosed mark": ("a.csv", 'a,0\n"b,1\n', "unexpected end of data"),
    "label outside": (
        "a.tsv",
        "a\t0\nb\t2\n",
        "line 2: unknown label '2'; valid labels: 0, 1",
    ),
}


@pytest.mark.parametrize(("name", "text", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_line_is_named(
    name: str, text: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_table(path, 0, 1, None, ["0", "1"])
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_heading_gives_the_number_of_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\na\t0\tmore\n")
    with pytest.raises(UserError, match="line 2: 3 fields, but the first line has 2"):
        read_table(path, "text", "label", None, ["0"])


LABELS = {
    "1": "1",
    " 1": "1",
    "1.0": "1",
    "+1.": "1",
    "-1.0": "-1",
    "0.50": "0.5",
    "01": "01",
    "1e3": "1e3",
    "one": "one",
    "1.0.0": "1.0.0",
    "9" * 20: "9" * 20,
}


@pytest.mark.parametrize(("label", "canonical"), LABELS.items())
def test_numbers_have_one_spelling(label: str, canonical: str) -> None:
    assert canonical_label(label) == canonical


def test_spellings_of_one_number_are_one_label(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("a\t1\nb\t1.0\nc\t0\nd\t 1\n")
    assert read_labels(path, 1) == ["0", "1"]
    assert read_table(path, 0, 1, None, ["0", "1.0"]).target.tolist() == [1, 1, 0, 1]
    # A label with one spelling keeps it: checkpoints name it so.
    path.write_text("a\t1.0\nb\t0.0\n")
    assert read_labels(path, 1) == ["0.0", "1.0"]


def test_rare_labels_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("a\tgood\nb\tbad\n" * 40 + "c\tmistake\n")
    assert read_labels(path, 1) == ["bad", "good", "mistake"]
    out = capsys.readouterr().out
    assert "few samples have the labels 'mistake' (1)" in out
    assert out.count("\n") == 1
    assert rare_classes({"a": 2, "b": 3, "": 9}) == ""
    assert rare_classes({"a": 1000, "b": 3, "c": 4}) == "'b' (3)"
    many = {**{str(number): 1 for number in range(100)}, "common": 10_000}
    assert rare_classes(many).endswith("and 90 others")


def test_labels_that_are_spelled_alike_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("a\tgood\nb\tbad\nc\tGood\nd\tvery  bad\n" * 20)
    assert read_labels(path, 1) == ["Good", "bad", "good", "very  bad"]
    out = capsys.readouterr().out
    assert "the labels 'Good' and 'good' differ only in capital letters" in out
    assert out.count("\n") == 1
    assert (
        classes_spelled_alike(["very  bad", "very bad"]) == "'very  bad' and 'very bad'"
    )
    assert classes_spelled_alike(["a", "b", "ab"]) == ""
    many = [f"{letter}{number}" for number in range(12) for letter in "aA"]
    assert classes_spelled_alike(many).endswith("and 2 others")


def data(folder: Path, **arguments: Any) -> TextDataModule:
    return TextDataModule(
        root=str(folder), train_file="train.csv", test_file="test.csv", **arguments
    )


def test_the_datamodule_uses_the_format_and_refuses_other_labels(
    tmp_path: Path,
) -> None:
    lines = "Schön, warm;gut\nkalt;schlecht\n"
    (tmp_path / "train.csv").write_text(lines * 10)
    (tmp_path / "test.csv").write_text(lines)
    for arguments in ({}, {"delimiter": ";"}):
        module = data(tmp_path, **arguments)
        assert module.raw("test").texts == [("Schön, warm",), ("kalt",)]
        assert module.classes == ["gut", "schlecht"]
    (tmp_path / "test.csv").write_text(lines + "lau;mittel\n")
    with pytest.raises(UserError, match=r"test\.csv, line 3: unknown label 'mittel'"):
        data(tmp_path).raw("test")
    with pytest.raises(
        UserError, match=r"data\.labels lists '1' and '1\.0', which are equal"
    ):
        data(tmp_path, labels=["1", "1.0"])
