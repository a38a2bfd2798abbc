"""Reading documents: which files, which fields, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.data.corpus.documents import Document, find_files, read_documents
from kd_lightning.errors import UserError


def test_a_text_file_is_one_document_and_json_lines_are_many(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("\ufeffOne.\n\nTwo — é.".encode())
    assert list(read_documents(text)) == [Document("One.\n\nTwo — é.")]
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        '{"text": "a\\nb\u2028c", "id": 3}\n\n{"prompt": "Q", "completion": "A"}\n'
    )
    assert list(read_documents(lines)) == [
        Document("a\nb\u2028c"),
        Document("A", prompt="Q"),
    ]


def test_files_are_sorted_by_name_and_named_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl", "d.md"):
        (tmp_path / name).write_text("x")
    names = ["a.txt", "b.txt", "c.jsonl"]
    assert [file.name for file in find_files(tmp_path, ["."], "data.train")] == names
    chosen = find_files(
        tmp_path, ["b.txt", "*.txt", str(tmp_path / "c*")], "data.train"
    )
    assert [file.name for file in chosen] == ["b.txt", "a.txt", "c.jsonl"]
    # A file that is named itself may have any ending.
    (named,) = find_files(tmp_path, ["d.md"], "data.train")
    assert list(read_documents(named)) == [Document("x")]
    with pytest.raises(UserError, match=r"data.train: .*none\* names no file"):
        find_files(tmp_path, ["none*"], "data.train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a.txt is not UTF-8 \(at byte 3\); convert it"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'["text"]', r"line 1 needs the field text, or the fields prompt"),
        ("a.jsonl", b'{"text": 3}', r"line 1 needs the field text"),
        ("a.jsonl", b'{"prompt": "Q"}', r"line 1 needs the field text"),
        ("a.jsonl", b"[" * 100_000, r"line 1 is not JSON"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_documents(tmp_path / name))


def test_a_byte_that_is_no_utf8_is_counted_from_the_start(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "\xe9"}')
    with pytest.raises(UserError, match=r"a.jsonl is not UTF-8 \(at byte 27\)"):
        list(read_documents(file))
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert list(read_documents(file)) == [Document("a")]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.txt cannot be read: No such file"):
        list(read_documents(tmp_path / "none.txt"))
