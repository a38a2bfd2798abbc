"""The one reader of YAML: plain values as before, and one line at once for everything else."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.errors import UserError
from kd_lightning.yaml_files import MAX_BYTES, parse_yaml, read_yaml, read_yaml_file

PLAIN: dict[str, Any] = {
    "1": 1,
    "-1_000": -1000,
    "0x1f": 31,
    "017": 15,
    "1.5": 1.5,
    "1e-3": 0.001,
    "1.0e+4": 10_000.0,
    "-.inf": -math.inf,
    "true": True,
    "no": False,
    "~": None,
    "": None,
    "1:30": "1:30",
    "00:12:00:00": "00:12:00:00",
    "2020-01-01": "2020-01-01",
    "[a, {b: c}]": ["a", {"b": "c"}],
    "{a: &x [1], b: *x}": {"a": [1], "b": [1]},
    "{a: &x {b: 1}, c: {<<: *x, d: 2}}": {"a": {"b": 1}, "c": {"b": 1, "d": 2}},
    "9223372036854775807": 2**63 - 1,
}


@pytest.mark.parametrize(("text", "value"), PLAIN.items(), ids=PLAIN)
def test_plain_values(text: str, value: Any) -> None:
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)
    # What is written from them is read as the same values.
    assert parse_yaml(yaml.safe_dump(value)) == value


def test_nan() -> None:
    assert math.isnan(parse_yaml(".nan"))


def bomb(depth: int) -> str:
    """Lists of ten aliases each: 10^depth values in a few hundred bytes."""
    lines = ["a0: &a0 [" + ", ".join("1" * 10) + "]"]
    for level in range(1, depth):
        lines.append(
            f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 10) + "]"
        )
    return "\n".join(lines)


REFUSED = {
    "alias bomb": (bomb(20), "stands for more than"),
    "alias bomb of mappings": (
        bomb(20).replace("[", "{x: [").replace("]", "]}"),
        "stands for",
    ),
    "self-reference": ("a: &a [*a]", "line 1: the value refers to itself"),
    "self-reference through a mapping": ("a: &a {b: {c: *a}}", "refers to itself"),
    "deep": ("[" * 100 + "]" * 100, "nested more than 64 deep"),
    "deep aliases": (
        "\n".join(
            ["a0: &a0 [1]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100))]
        ),
        "nested more than 64 deep",
    ),
    "very deep": ("[" * 100_000, ""),
    "duplicate key": (
        "a: 1\nb: 2\na: 3",
        "line 3: the key 'a' stands in line 1 already",
    ),
    "duplicate inner key": (
        "x:\n  a: 1\n  a: 3",
        "line 3: the key 'a' stands in line 2",
    ),
    "list as a key": ("? [1, 2]\n: 3", "a key must be text"),
    "mapping as a key": ("{{a: 1}: 2}", "a key must be text"),
    "5,000 digits": ("a: " + "9" * 5000, "line 1: the number 999"),
    "65 bits": ("a: 9223372036854775808", "out of range"),
    "long base 60": ("a: !!int 1" + ":59" * 2000, "out of range"),
    "function": (
        "a: !!python/object/apply:os.system [ls]",
        "!!python/object/apply:os.s",
    ),
    "name": ("!!python/name:os.system", "is not allowed"),
    "own tag": ("a: !mine 3", "the tag !mine is not allowed"),
    "binary": ("a: !!binary aGVsbG8=", "!!binary"),
    "set": ("!!set {a, b}", "!!set"),
    "wrong number": ("!!int abc", ""),
    "unknown alias": ("a: *b", "undefined alias"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "broken": ("a: [1", "not YAML, line"),
    "tab": ("a:\n\t- b", "not YAML, line 2"),
    "control character": ("a: \x07", ""),
    "lone surrogate": ("a: \ud800", "not Unicode"),
}


@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=re.escape(problem)) as caught:
        read_yaml(text, "the file")
    assert str(caught.value).startswith("the file")
    assert len(str(caught.value)) < 300


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: ä", encoding="utf-8")
    assert read_yaml_file(path, "it") == {"a": "ä"}
    path.write_bytes("a: ä".encode("latin-1"))
    with pytest.raises(UserError, match="it is not YAML: it is not UTF-8"):
        read_yaml_file(path, "it")
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="it is larger than"):
        read_yaml_file(path, "it")
    with pytest.raises(UserError, match="it is not a file"):
        read_yaml_file(tmp_path, "it")
