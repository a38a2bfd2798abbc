"""Damaged, altered and hostile caches end in one line; none gives a sample another's output."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.models import MLP
from kd_lightning.teachers import CachedTeacher, ModelTeacher, cache_teacher
from kd_lightning.teachers.cache.teacher import verify_cache
from kd_lightning.types import Output

Content = dict[str, Any]
FIXTURE = Path(__file__).parents[2] / "fixtures" / "version_0_1" / "cache"


def teacher() -> ModelTeacher:
    torch.manual_seed(0)
    return ModelTeacher(network=MLP([8], input_shape=[1, 8, 8], num_classes=10))


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    return DigitsDataModule(batch_size=64)


@pytest.fixture(scope="module", params=["dense", "top-k"])
def whole(
    request: pytest.FixtureRequest,
    data: DigitsDataModule,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "cache"
    options: dict[str, Any] = {"top_k": 3, "temperatures": [4.0]}
    return cache_teacher(
        teacher(),
        data,
        folder,
        **(options if request.param == "top-k" else {"dtype": "fp16"}),
    )


@pytest.fixture
def old(tmp_path: Path, data: DigitsDataModule) -> Path:
    """A cache of all logits in the form of version 0.1, which has fewer checksums."""
    folder = cache_teacher(teacher(), data, tmp_path / "old")
    store(folder, as_version_1(content_of(folder)), sign=False)
    return folder


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "cache")


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content_of(cache: Path) -> Content:
    content: Content = json.loads((cache / "manifest.json").read_text())
    return content


def store(cache: Path, content: object, sign: bool = True) -> None:
    """Write a manifest, with the checksum that fits it if it is signed."""
    if isinstance(content, dict) and sign:
        content = {key: value for key, value in content.items() if key != "sha256"}
        content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    (cache / "manifest.json").write_text(json.dumps(content))


def as_version_1(content: Content) -> Content:
    """The same in the form of version 0.1, which has no checksum of manifest and row numbers."""
    del content["sha256"]
    for table in content["tables"].values():
        del table["rows_sha256"]
    return content | {"version": 1}


def read(cache: Path, data: DigitsDataModule) -> list[Output]:
    """The outputs of all splits."""
    stored = CachedTeacher(str(cache))
    stored.prepare(data)
    outputs = []
    for stage in ("train", "validation", "test"):
        outputs += [stored(batch) for batch in data.loader(stage)]
    return outputs


def equal(one: list[Output], other: list[Output]) -> bool:
    return all(torch.equal(a.logits, b.logits) for a, b in zip(one, other, strict=True))


def test_whole_caches_are_read_and_verified(
    cache: Path, data: DigitsDataModule
) -> None:
    size = sum(path.stat().st_size for path in cache.glob("*.bin"))
    assert verify_cache(cache) == size
    assert sum(len(output.logits) for output in read(cache, data)) == 1797


@pytest.mark.parametrize("suffix", ["bin", "npy", "json"])
def test_a_flipped_bit_is_found_wherever_it_is(
    cache: Path, data: DigitsDataModule, suffix: str
) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(cache.glob(f"*.{suffix}")):
        intact = path.read_bytes()
        for place in rng.integers(len(intact), size=10):
            changed = bytearray(intact)
            changed[place] ^= 1 << int(rng.integers(8))
            if suffix == "json" and _same_json(intact, changed):
                continue
            path.write_bytes(changed)
            complaint(lambda: verify_cache(cache))
            complaint(lambda: read(cache, data))
        path.write_bytes(intact)
    verify_cache(cache)


def _same_json(intact: bytes, changed: bytearray) -> bool:
    """Whether the flip hit white space alone."""
    try:
        return bool(json.loads(intact) == json.loads(changed))
    except ValueError:
        return False


@pytest.mark.parametrize("split", ["train", "test"])
def test_row_numbers_in_another_order_are_refused_and_repaired(
    cache: Path, data: DigitsDataModule, split: str
) -> None:
    before = read(cache, data)
    path = cache / f"{split}.viewclean.rows.npy"
    np.save(path, np.load(path)[::-1])
    assert "was altered" in complaint(lambda: read(cache, data))
    content = content_of(cache)
    options: Content = {"dtype": content["settings"]["dtype"]}
    if content["settings"]["top_k"] is not None:
        options |= {"top_k": 3, "temperatures": [4.0]}
    cache_teacher(teacher(), data, cache, **options)
    assert equal(before, read(cache, data))


HUGE_CLAIM = (
    b"\x93NUMPY\x01\x00\x76\x00{'descr': '<i8', 'fortran_order': False, "
    b"'shape': (1000000000000,), }"
)


@pytest.mark.parametrize(
    "rows",
    [
        np.arange(1195) / 2,
        np.full(1195, 2**40),
        np.full(1195, 2**62),
        np.full(1195, -1),
        np.zeros(1195, np.int64),
        np.zeros((5, 5), np.int64),
        np.array("text"),
        np.zeros(0, np.int64),
        HUGE_CLAIM.ljust(128, b" ") + bytes(64),
        b"",
        b"PK\x03\x04",
    ],
    ids=str,
)
def test_rows_of_version_1_that_are_no_rows(
    old: Path, data: DigitsDataModule, rows: np.ndarray | bytes
) -> None:
    path = old / "train.viewclean.rows.npy"
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    else:
        np.save(path, rows)
    complaint(lambda: read(old, data))


CHANGES: dict[str, Callable[[Content], Any]] = {
    "dtype": lambda c: c["settings"].update(
        dtype="fp32" if c["settings"]["dtype"] == "fp16" else "fp16"
    ),
    "classes": lambda c: c["settings"].update(classes=9),
    "features": lambda c: c["settings"].update(features=["penultimate"]),
    "positions": lambda c: c["settings"].update(positions=2),
    "weights": lambda c: c["settings"].update(weights=[0.5, 0.5]),
    "top_k": lambda c: c["settings"].update(top_k=5),
    "no top_k": lambda c: c["settings"].update(top_k=12),
    "temperatures": lambda c: c["settings"].update(temperatures=[1.0], top_k=3),
    "shard_rows": lambda c: c["tables"]["train/clean"].update(shard_rows=100),
    "shape": lambda c: next(iter(c["columns"].values())).update(shape=[2, 5]),
    "column dtype": lambda c: next(iter(c["columns"].values())).update(dtype="int16"),
    "column name": lambda c: c.update(
        columns={"other": next(iter(c["columns"].values()))}
    ),
    "other rows": lambda c: c["tables"]["train/clean"].update(
        rows="test.viewclean.rows.npy"
    ),
    "shards of another table": lambda c: c["tables"]["train/clean"].update(
        shards=c["tables"]["test/clean"]["shards"]
    ),
    "a file elsewhere": lambda c: c["tables"]["train/clean"]["shards"][0].update(
        file="../x"
    ),
    "no shards": lambda c: c["tables"]["train/clean"].update(shards=[]),
    "no tables": lambda c: c.update(tables={}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_settings_are_refused(
    cache: Path, change: Callable[[Content], Any]
) -> None:
    content = content_of(cache)
    before = json.dumps(content)
    change(content)
    assert json.dumps(content) != before
    store(cache, content, sign=False)
    assert "is damaged" in complaint(lambda: verify_cache(cache))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_settings_of_version_1_are_refused(
    old: Path, data: DigitsDataModule, change: Callable[[Content], Any]
) -> None:
    """Without a checksum of the manifest its parts must fit each other."""
    content = content_of(old)
    change(content)
    store(old, content, sign=False)
    complaint(lambda: read(old, data))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in nested mappings and lists."""
    if path:
        yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


MISSING = object()
WRONG: tuple[Any, ...] = (
    MISSING,
    None,
    -1,
    0,
    1.5,
    True,
    "x",
    "../x",
    [],
    {},
    [None],
    10**30,
    nested(200),
)


def test_every_value_of_a_manifest_may_be_wrong(
    cache: Path, data: DigitsDataModule
) -> None:
    """One line, or the same outputs as before: never another error, never other outputs."""
    expected = read(cache, data)
    intact = content_of(cache)
    versions = [intact]
    if intact["settings"]["top_k"] is None:
        versions.append(as_version_1(content_of(cache)))
    refused = 0
    for number, version in enumerate(versions):
        for path in places(version):
            if path[0] == "sha256":
                continue
            for wrong in WRONG:
                content = json.loads(json.dumps(version))
                parent = content
                for key in path[:-1]:
                    parent = parent[key]
                if wrong is MISSING:
                    del parent[path[-1]]
                else:
                    parent[path[-1]] = wrong
                store(cache, content, sign=number == 0)
                outputs = None
                try:
                    if path[0] == "fingerprint":
                        CachedTeacher(str(cache)).prepare(data)
                    else:
                        verify_cache(cache)
                    if path[0] in ("tables", "columns"):
                        outputs = read(cache, data)
                except UserError:
                    refused += 1
                    continue
                assert outputs is None or equal(expected, outputs), (path, wrong)
    assert refused > 300


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[",
            "[]",
            "null",
            "3",
            '"text"',
            "NaN",
            "[" * 100_000,
            "{" * 1000,
            "1" * 5_000,
        ),
        *("\udc80", '{"version": 2}', '{"version": null}', '{"version": 1}'),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_manifests_of_another_form(cache: Path, text: str) -> None:
    (cache / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "damaged" in complaint(
        lambda: CachedTeacher(str(cache)).prepare(DigitsDataModule())
    )


def test_a_deep_manifest_is_refused(cache: Path) -> None:
    depth = 5_000
    text = '{"version": 2, "fingerprint": ' + '{"a": ' * depth + "1" + "}" * depth + "}"
    (cache / "manifest.json").write_text(text)
    assert "nested" in complaint(lambda: verify_cache(cache))


def test_a_manifest_that_is_no_file_is_refused(cache: Path) -> None:
    (cache / "manifest.json").unlink()
    (cache / "manifest.json").symlink_to("/dev/zero")
    assert "holds no teacher cache" in complaint(lambda: verify_cache(cache))


def test_top_k_caches_of_version_1_name_the_command_that_remakes_them(
    cache: Path,
) -> None:
    content = as_version_1(content_of(cache))
    content["settings"] |= {"top_k": 3, "dtype": "fp16"}
    store(cache, content, sign=False)
    message = complaint(lambda: CachedTeacher(str(cache)).prepare(DigitsDataModule()))
    assert f"run: kd cache ... --output {cache} --top-k 3 --dtype fp16" in message


def test_full_caches_of_version_1_are_verified_and_continued(
    old: Path, data: DigitsDataModule
) -> None:
    assert verify_cache(FIXTURE) == 9320 + 24080
    before = {path.name: path.read_bytes() for path in old.glob("*.bin")}
    (old / "test.viewclean.00000.bin").unlink()
    cache_teacher(teacher(), data, old)
    assert before == {path.name: path.read_bytes() for path in old.glob("*.bin")}
    verify_cache(old)
