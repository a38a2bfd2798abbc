"""Tables from text files and from Parquet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from kd_lightning.data.tabular.files import consistent_labels, read_table
from kd_lightning.data.text.dialect import Dialect
from tests.data.tabular.tables import lines_of, write
from tests.training.small import complaint


def test_csv_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\ufeffx, name\n1.5,"a, b"\n\n , c\n', encoding="utf-8"
    )
    table = read_table(tmp_path / "a.csv")
    assert {name: column.tolist() for name, column in table.items()} == {
        "x": ["1.5", ""],
        "name": ["a, b", "c"],
    }


def test_tab_separated_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('x\ty\n1\t"2\n')
    assert {
        name: column.tolist() for name, column in read_table(tmp_path / "a.tsv").items()
    } == {
        "x": ["1"],
        "y": ['"2'],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3: 1 fields, but the first line names 2 columns"),
        ("a,a\n1,2\n", "2 columns have the name 'a'"),
        ("a,b\n", "holds no samples"),
        ("", "is empty"),
    ],
)
def test_a_broken_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert message in complaint(lambda: read_table(path))


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        message = complaint(lambda name=name: read_table(tmp_path / name))  # type: ignore[misc]
        assert message == f"there is no file {tmp_path / name}"


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"")
    assert complaint(lambda: read_table(path)).endswith(
        "pip install 'kd_lightning[tables]'"
    )


def test_parquet_holds_the_same_table_as_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip(
        "pyarrow", reason="pip install 'kd_lightning[tables]'"
    )
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = lines_of(20)
    age, city, income, species = zip(*lines, strict=True)
    columns = {
        "age": [int(value) for value in age],
        "city": list(city),
        "income": [float(value) for value in income],
        "species": [None, *species[1:]],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    lines[0][3] = ""
    from_csv = read_table(write(tmp_path / "a.csv", lines))
    from_parquet = read_table(tmp_path / "a.parquet")
    assert list(from_csv) == list(from_parquet)
    for name, column in from_csv.items():
        np.testing.assert_array_equal(
            column.astype(from_parquet[name].dtype), from_parquet[name]
        )


def test_a_broken_parquet_file_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'kd_lightning[tables]'")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no parquet")
    assert "is not a readable Parquet file" in complaint(lambda: read_table(path))


def test_semicolons_and_given_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x;y\n1,5;a\n2,5;b\n")
    expected = {"x": ["1,5", "2,5"], "y": ["a", "b"]}
    for dialect in (Dialect(), Dialect(";")):
        table = read_table(path, dialect)
        assert {name: column.tolist() for name, column in table.items()} == expected
    assert capsys.readouterr().out.count("detected semicolons") == 1


def test_spellings_of_one_number_are_one_class() -> None:
    mixed = np.array(["1", "1.0", "0"])
    assert consistent_labels(mixed).tolist() == ["1", "1", "0"]
    same = np.array(["1.0", "0.0"])
    assert consistent_labels(same) is same
    numbers = np.array([1.0, 0.0])
    assert consistent_labels(numbers) is numbers
