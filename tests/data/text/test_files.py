"""Sentences and labels from files, and the messages for malformed files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kd_lightning.data.text.files import Column, read_sentences, read_table
from kd_lightning.data.text.labels import read_labels
from kd_lightning.data.text.words import MASK, words
from kd_lightning.errors import UserError

LABELS = ["0", "1"]


def write(folder: Path, text: str | bytes, name: str = "some.tsv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_tsv_without_a_heading(tmp_path: Path) -> None:
    # Quotation marks are part of a sentence; both kinds of line ends work; blank lines are skipped.
    found = read_table(
        write(tmp_path, 'he said " no\t0\r\n\nyes "\t1'), 0, 1, None, LABELS
    )
    assert found.texts == [('he said " no',), ('yes "',)]
    assert found.target.tolist() == [0, 1]


def test_a_file_with_a_heading_and_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "index\tsentence\n0\ta fine film\n1\ta bore\n")
    found = read_table(path, "sentence", None, None, LABELS)
    assert found.texts == [("a fine film",), ("a bore",)]
    assert found.target.tolist() == [-100, -100]


def test_quoted_csv_with_two_texts_and_a_missing_label(tmp_path: Path) -> None:
    text = '\ufeffpremise,gold,hypothesis\n"one, two\nthree",yes,"so ""it"" is"\nfour,,five\n'
    path = write(tmp_path, text, "pairs.csv")
    found = read_table(path, "premise", "gold", "hypothesis", ["no", "yes"])
    assert found.texts == [("one, two\nthree", 'so "it" is'), ("four", "five")]
    assert found.target.tolist() == [1, -100]
    with pytest.raises(UserError, match="all samples have the label 'yes'"):
        read_labels(path, "gold")


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("", (0, 1), "is empty"),
        (" \n\n", (0, 1), "is empty"),
        (
            "good\t1\nbad\n",
            (0, 1),
            "line 2: there is no column 1, counted from 0; the line has only 1",
        ),
        ("good\t1\nodd\t2\n", (0, 1), "line 2: unknown label '2'; valid labels: 0, 1"),
        ("good\t1\n \t0\n", (0, 1), "line 2: the text is empty"),
        (
            "text\tlabel\ngood\t1\n",
            ("sentence", "label"),
            "has no column 'sentence'; its first line names text, label",
        ),
        ("text\tlabel\n", ("text", "label"), "has a heading but no samples"),
        (b"good\t1\n\nbl\xe9\t0\n", (0, 1), "line 3: byte 0xe9 is not UTF-8"),
    ],
)
def test_malformed_files(
    tmp_path: Path, text: str | bytes, columns: tuple[Column, Column], words: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_table(path, *columns, None, LABELS)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "read",
    [lambda p: read_table(p, 0, 1, None, LABELS), lambda p: read_sentences(p, False)],
)
def test_a_missing_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none\.tsv"):
        read(tmp_path / "none.tsv")


def test_a_heading_is_not_a_class(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\n" + "fine\tgood\nbad\tpoor\n" * 2)
    with pytest.raises(
        UserError,
        match="the first line looks like a heading, because no other line has its label 'label'",
    ):
        read_labels(path, 1)
    assert read_labels(path, "label") == ["good", "poor"]
    for lines in (
        "fine\t0\nbad\t1\nworse\t2\n",
        "fine\t0\n",
    ):  # single samples, numbers, one class
        path.write_text("words\tstars\n" + lines)
        with pytest.raises(UserError, match="the first line looks like a heading"):
            read_labels(path, 1)
    path.write_text("fine\tgood\nalso\tgood\n")
    with pytest.raises(
        UserError,
        match=r"all samples have the label 'good'; list all classes in data\.labels",
    ):
        read_labels(path, 1)
    path.write_text("text\tlabel\nfine\t\n")
    with pytest.raises(UserError, match="no sample has a label in column 'label'"):
        read_labels(path, "label")


def test_an_unclosed_quotation_mark(tmp_path: Path) -> None:
    path = write(tmp_path, 'label,text\n0,"never closed\n1,b\n0,c\n', "some.CSV")
    with pytest.raises(UserError, match=r"some\.CSV, line 4: unexpected end of data"):
        read_table(path, "text", "label", None, LABELS)


def test_negative_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="columns are counted from 0, got -1"):
        read_table(write(tmp_path, "fine\t1\n"), 0, -1, None, LABELS)


def test_raw_sentences(tmp_path: Path) -> None:
    # Commas and quotation marks do not split, whatever the name of the file.
    single = write(tmp_path, 'one, "two"\n\n three\t3 \n', "raw.csv")
    assert read_sentences(single, False).texts == [('one, "two"',), ("three\t3",)]
    odd = write(
        tmp_path, "one\u2028more\r\ntwo\x0bmore\n"
    )  # only \n and \r\n end a line
    assert read_sentences(odd, False).texts == [("one\u2028more",), ("two\x0bmore",)]
    pairs = write(tmp_path, "a\tb c\n", "raw.txt")
    assert read_sentences(pairs, True).texts == [("a", "b c")]
    with pytest.raises(UserError, match="sentence 1 has no tab"):
        read_sentences(write(tmp_path, "a b\n"), True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It isn't Amélie's!", ["it", "is", "n't", "amelie", "'s", "!"]),
        ("they wo n't , they 're", ["they", "wo", "n't", ",", "they", "'re"]),
        ("DON\u2019T can't", ["do", "n't", "ca", "n't"]),
        (
            "rock'n'roll '60s -- 3.5",
            ["rock", "'", "n", "'", "roll", "'", "60s", "-", "-", "3", ".", "5"],
        ),
        (f"a {MASK} film", ["a", MASK, "film"]),
        (" \t", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert words(" ".join(expected)) == expected


def test_words_with_their_case_and_accents() -> None:
    assert words("It ISN'T Amélie's", plain=False) == [
        "It",
        "IS",
        "N'T",
        "Amélie",
        "'s",
    ]
