"""The store's files: whole or absent, checked, continued, and bounded in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.teachers.cache.manifest import Column, Manifest
from kd_lightning.teachers.cache.table import Table
from kd_lightning.teachers.cache.writer import Writer

COLUMNS = {"logits": Column("float32", (3,)), "code": Column("int16", (2,))}
ROWS = np.array([7, 2, 9, 4, 0, 11, 3, 5])


def values(rows: np.ndarray) -> dict[str, np.ndarray]:
    logits = (rows[:, None] + np.array([0.0, 0.25, 0.5])).astype(np.float32)
    return {"logits": logits, "code": np.stack([rows, -rows], 1).astype(np.int16)}


def read(table: Table, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {
        name: column.numpy()
        for name, column in table.read(torch.from_numpy(rows)).items()
    }


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three rows of 16 bytes.
    monkeypatch.setattr("kd_lightning.teachers.cache.writer.SHARD_BYTES", 3 * 16)


def writer(folder: Path, fingerprint: str = "a") -> Writer:
    return Writer(folder, {"of": fingerprint}, {}, COLUMNS, align=1)


def fill(folder: Path) -> Manifest:
    made = writer(folder)
    for number, start, stop in made.open("train/0", ROWS):
        made.put("train/0", number, values(ROWS[start:stop]))
    return made.manifest


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("mapped", [True, False])
def test_rows_come_back_in_any_order_across_shards(
    tmp_path: Path, mapped: bool
) -> None:
    table = Table(fill(tmp_path), "train/0", mapped)
    asked = np.array([5, 7, 7, 0, 9])
    got = read(table, asked)
    assert all(np.array_equal(got[name], values(asked)[name]) for name in COLUMNS)
    assert len(list(tmp_path.glob("*.bin"))) == 3


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("row", [1, 12, -1])
def test_a_row_that_was_not_cached_is_named(tmp_path: Path, row: int) -> None:
    table = Table(fill(tmp_path), "train/0")
    assert f"holds no output for row {row} of the train split" in complaint(
        lambda: read(table, np.array([7, row]))
    )


@pytest.mark.parametrize(
    ("rows", "row"),
    [(ROWS, 1), (ROWS, 12), (ROWS, -1), (np.arange(12), 12), (np.arange(12), -1)],
)
def test_one_column_in_one_shard(tmp_path: Path, rows: np.ndarray, row: int) -> None:
    made = Writer(tmp_path, {}, {}, {"logits": COLUMNS["logits"]}, align=1)
    for number, start, stop in made.open("train/0", rows):
        made.put("train/0", number, {"logits": values(rows[start:stop])["logits"]})
    table, asked = Table(made.manifest, "train/0"), np.array([5, 7, 7, 0, 9])
    assert np.array_equal(read(table, asked)["logits"], values(asked)["logits"])
    assert f"holds no output for row {row} of the train split" in complaint(
        lambda: read(table, np.array([7, row]))
    )


@pytest.mark.usefixtures("small_shards")
def test_a_killed_writer_goes_on_where_it_was(tmp_path: Path) -> None:
    made = writer(tmp_path)
    number, start, stop = made.open("train/0", ROWS)[0]
    made.put("train/0", number, values(ROWS[start:stop]))
    assert "is not complete (3 of 8 rows" in complaint(
        lambda: Table(made.manifest, "train/0")
    )
    again = writer(tmp_path)
    assert [r[0] for r in again.open("train/0", ROWS)] == [1, 2]


@pytest.mark.usefixtures("small_shards")
def test_a_truncated_shard_is_found_and_mended(tmp_path: Path) -> None:
    manifest = fill(tmp_path)
    shard = sorted(tmp_path.glob("*.bin"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "missing or truncated" in complaint(lambda: Table(manifest, "train/0"))
    assert [r[0] for r in writer(tmp_path).open("train/0", ROWS)] == [1]


@pytest.mark.usefixtures("small_shards")
def test_an_altered_shard_is_found_and_mended(tmp_path: Path) -> None:
    manifest = fill(tmp_path)
    shard = sorted(tmp_path.glob("*.bin"))[2]
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    table = Table(manifest, "train/0")
    read(table, ROWS[:2])  # another shard: whole
    assert "was altered" in complaint(lambda: read(table, ROWS[-1:]))
    assert [r[0] for r in writer(tmp_path).open("train/0", ROWS)] == [2]


def test_no_cache_a_damaged_one_and_another_version(tmp_path: Path) -> None:
    assert "holds no teacher cache" in complaint(lambda: Manifest.read(tmp_path))
    fill(tmp_path / "c")
    path = tmp_path / "c" / "manifest.json"
    whole = path.read_text()
    path.write_text(whole[:50])
    assert "is damaged" in complaint(lambda: Manifest.read(tmp_path / "c"))
    path.write_text(json.dumps(json.loads(whole) | {"version": 9}))
    assert "has version 9" in complaint(lambda: Manifest.read(tmp_path / "c"))
    path.write_text(whole)
    (tmp_path / "c" / "train.view0.rows.npy").unlink()
    assert "missing or damaged" in complaint(
        lambda: Table(Manifest.read(tmp_path / "c"), "train/0")
    )


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in complaint(lambda: writer(tmp_path))
    fill(tmp_path / "c")
    assert "of is a in the cache and b in this run" in complaint(
        lambda: writer(tmp_path / "c", "b")
    )
    assert "other rows" in complaint(
        lambda: writer(tmp_path / "c").open("train/0", ROWS[::-1])
    )
    assert "cannot be written" in complaint(lambda: writer(tmp_path / "mine.txt" / "c"))


MEASURE = """
import os, sys
from pathlib import Path
import numpy as np
import torch
from kd_lightning.teachers.cache.manifest import Manifest
from kd_lightning.teachers.cache.table import Table

def resident():  # anonymous and file-backed pages, in bytes
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

manifest = Manifest.read(Path(sys.argv[1]))
n = len(manifest.rows("train/0"))
before, most, files = resident(), 0, len(os.listdir("/proc/self/fd"))
tables = [Table(manifest, name, mapped=False) for name in manifest.content["tables"]]
for table in tables:
    for start in range(0, n, 256):
        table.read((torch.arange(start, start + 256) * 7919) % n)
        most = max(most, resident() - before)
print(most, len(os.listdir("/proc/self/fd")) - files)
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(),
    reason="resident memory is read from /proc, as Linux has it",
)
@pytest.mark.parametrize(("views", "classes"), [(1, 512), (60, 1)])
def test_what_stays_resident_does_not_grow_with_the_cache(
    tmp_path: Path, views: int, classes: int
) -> None:
    """A 128 MB table, too large to be mapped, and many views of 65,536 rows leave little in memory, no open file."""
    made = Writer(
        tmp_path, {}, {}, {"logits": Column("float32", (classes,))}, align=256
    )
    rows = np.arange(2**16)
    for view in range(views):
        for number, start, stop in made.open(f"train/{view}", rows):
            made.put(
                f"train/{view}",
                number,
                {"logits": np.zeros((stop - start, classes), np.float32)},
            )
    assert len(list(tmp_path.glob("*.rows.npy"))) == 1
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    most, files = map(int, run.stdout.split())
    assert (
        most < 12 * 2**20
    )  # the outputs are 15 and 128 MB; the allocator keeps freed blocks
    assert files == 0


def test_views_of_other_rows_keep_their_own(tmp_path: Path) -> None:
    made = writer(tmp_path)
    for name, rows in (
        ("train/0", ROWS),
        ("train/1", ROWS),
        ("train/clean", ROWS + 20),
        ("test/clean", ROWS),
    ):
        for number, start, stop in made.open(name, rows):
            made.put(name, number, values(rows[start:stop]))
    assert len(list(tmp_path.glob("*.rows.npy"))) == 3
    manifest = Manifest.read(tmp_path)
    for name, row in (("train/1", 11), ("train/clean", 31), ("test/clean", 3)):
        asked = np.array([row])
        assert np.array_equal(
            read(Table(manifest, name), asked)["code"], values(asked)["code"]
        )
    assert "holds no output for row 11" in complaint(
        lambda: read(Table(manifest, "train/clean"), np.array([11]))
    )
