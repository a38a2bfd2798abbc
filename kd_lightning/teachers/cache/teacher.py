"""A teacher's outputs computed once and replayed exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.cache.codec import Codec
from kd_lightning.teachers.cache.manifest import Column, Manifest, describe_difference
from kd_lightning.teachers.cache.table import Table
from kd_lightning.teachers.cache.writer import Writer
from kd_lightning.types import CLEAN, Batch, Output
from kd_lightning.weights import sha256_of


def table_name(split: str, view: int) -> str:
    return f"{split}/{'clean' if view == CLEAN else view}"


class CachedTeacher(Teacher):
    """Outputs that `kd cache` (or `cache_teacher`) computed, in the place of the live teacher.

    Outputs are found by split, view and index, so that no order of the data can hand a sample another one's target. Full
    fp32 caches replay the live teacher bit for bit where it sees batches of the shape that the cache was made with;
    elsewhere logits differ by up to about 1e-5, since kernels differ with the batch's shape.

    Args:
        path: folder of the cache.
        sha256: checksums that the teacher's files must have had, in order.
        budget_mb: a cache of up to this size is memory-mapped; of a larger one only the rows of a batch are ever in memory.

    Raises:
        UserError: from `prepare`, where the cache is missing, damaged, not finished, or of other data, another
            augmentation or another teacher.
    """

    def __init__(self, path: str, sha256: list[str] | None = None, budget_mb: int = 256) -> None:
        super().__init__()
        self.path, self.sha256, self.budget = Path(path).expanduser(), sha256, budget_mb * 2**20
        self._tables: dict[str, Table] = {}
        self._manifest: Manifest | None = None
        self._codec = Codec()

    def prepare(self, datamodule: Any) -> None:
        manifest = Manifest.read(self.path)
        settings = dict(manifest.content["settings"])
        self._codec = Codec(**{**settings, "features": tuple(settings["features"])})
        fingerprint = manifest.content["fingerprint"]
        if difference := describe_difference(fingerprint["data"], datamodule.fingerprint()):
            raise UserError(f"the teacher cache {self.path} was made for other data: {difference}")
        stored = [source.get("sha256") for source in fingerprint["teacher"]]
        if self.sha256 is not None and list(self.sha256) != stored:
            raise UserError(
                f"the teacher cache {self.path} is of another teacher: sha256 {stored}, not {self.sha256}"
            )
        for source in fingerprint["teacher"]:
            self._check_unchanged(source)
        self._tables = {
            name: Table(manifest, name, manifest.bytes <= self.budget)
            for name in manifest.content["tables"]
        }
        self._manifest = manifest
        self._check_views(datamodule)
        super().prepare(datamodule)

    def _check_unchanged(self, source: dict[str, Any]) -> None:
        path = Path(source.get("path") or "/")
        if path.is_file() and sha256_of(path) != source["sha256"]:
            raise UserError(
                f"the teacher {path} has changed since the cache {self.path} was made; make the cache again"
            )

    def _check_views(self, datamodule: Any) -> None:
        wanted = getattr(datamodule, "views", None)
        cached = sum(
            1
            for name in self._tables
            if name.startswith("train/") and name != table_name("train", CLEAN)
        )
        if getattr(datamodule, "augment", None) and (wanted is None or wanted > cached):
            raise UserError(
                f"the teacher cache {self.path} holds {cached} views of the training data and this run asks for "
                f"{wanted or 'a new one every epoch'}; set --data.views={cached or 1}, or cache more views"
            )

    @property
    def exact_logits(self) -> bool:
        return self._codec.top_k is None

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        missing = sorted(roles - set(self._codec.features))
        if missing:
            raise UserError(
                f"a loss reads the teacher's layer {missing[0]!r}, which the cache {self.path} does not hold; "
                "use the live teacher, or cache it with kd cache --features"
            )
        return {}

    def probe(self, batch: Batch) -> Output:
        assert self._manifest is not None
        n = len(batch)
        blank = {
            name: np.zeros((n, *c.shape), dtype=c.dtype)
            for name, c in self._manifest.columns.items()
        }
        return self._codec.decode(
            {name: torch.from_numpy(a) for name, a in blank.items()}, batch.target.device
        )

    def outputs(self, batch: Batch) -> Output:
        name = table_name(batch.split, batch.view)
        if name not in self._tables:
            raise UserError(
                f"the teacher cache {self.path} holds nothing of the {batch.split} split in view "
                f"{'clean' if batch.view == CLEAN else batch.view}; it holds {', '.join(self._tables)}"
            )
        return self._codec.decode(self._tables[name].read(batch.index.cpu()), batch.target.device)

    def forward(self, batch: Batch) -> Output:
        return (
            self.outputs(batch) if self.ready else super().forward(batch)
        )  # what is read has no graph to keep away

    def sources(self) -> list[dict[str, Any]]:
        found = self._manifest.content["fingerprint"]["teacher"] if self._manifest else []
        return [{**source, "cache": str(self.path.resolve())} for source in found]


def planned(datamodule: Any, views: int) -> dict[str, tuple[list[Any], int]]:
    """The tables of a cache: name -> (sources whose samples it holds, view)."""
    tables: dict[str, tuple[list[Any], int]] = {}
    augmented = bool(getattr(datamodule, "augment", None))
    for stage in ("train", "validation", "test"):
        source = datamodule.source(stage)
        if len(source):
            for view in range(views) if augmented and stage == "train" else [CLEAN]:
                tables.setdefault(table_name(source.split, view), ([], view))[0].append(source)
    return tables


def _batches(
    sources: list[Any], view: int, start: int, stop: int, size: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Rows `start` to `stop` of the joined sources in batches of exactly `size`, and where those that count stand from `start`.

    A batch at the end of a source is filled up with that source's first samples: the kernels that a batch meets, and so the
    last bits of its outputs, depend on its shape. Samples that have a length come in its order, so that little is padded.
    """
    first = 0
    for source in sources:
        low, high = max(start - first, 0), min(stop - first, len(source))
        rows = torch.arange(low, max(low, high))
        if len(rows) and callable(lengths := getattr(source, "lengths", None)):
            rows = rows[torch.argsort(lengths(view)[rows], stable=True)]
        for own in rows.split(size) if len(rows) else ():
            spare = torch.arange(size - len(own)) % len(source)
            yield source.batch(torch.cat([own, spare]), view), own + (first - start)
        first += len(source)


def _check_shapes(found: dict[str, Tensor], columns: dict[str, Column]) -> None:
    for name, tensor in found.items():
        if tuple(tensor.shape[1:]) != columns[name].shape:
            raise UserError(
                f"the teacher's {name} are {list(columns[name].shape)} in one batch and {list(tensor.shape[1:])} in another; "
                "a cache keeps outputs of one shape: use the live teacher for them"
            )


def _rows(sources: list[Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([source.rows.cpu().numpy() for source in sources])


@contextlib.contextmanager
def _no_progress(total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def cache_teacher(
    teacher: Teacher,
    datamodule: Any,
    output: str | Path,
    views: int = 1,
    top_k: int | None = None,
    dtype: str = "fp32",
    features: tuple[str, ...] = (),
    device: torch.device | None = None,
    progress: Callable[[int], Any] = _no_progress,
) -> Path:
    """Compute a teacher's outputs for every sample and view, and keep them in a folder for `CachedTeacher`.

    What is there already is kept: a killed call goes on where it was, a damaged shard is computed again.

    Args:
        teacher: a live teacher.
        datamodule: whose train, validation and test samples are cached, in batches of its `batch_size`.
        output: folder of the cache.
        views: draws of the augmentation, where there is one: epoch e trains on view `e mod views`.
        top_k, dtype: see Codec.
        features: roles of the teacher's layers to cache besides the logits.
        device: where the teacher runs; the CPU where left out.
        progress: a context manager that is given the number of samples and returns what to call with each count done.

    Raises:
        UserError: see Writer and Codec.
    """
    if views < 1:
        raise UserError(f"--views must be at least 1, got {views}")
    device = device or torch.device("cpu")
    teacher.prepare(datamodule)
    teacher.to(device)
    teacher.tap(set(features))
    size, tables = int(datamodule.batch_size), planned(datamodule, views)
    example = teacher(next(_batches(*next(iter(tables.values())), 0, 1, size))[0].to(device))
    codec = Codec.for_output(example, dtype, top_k)
    fingerprint = {"teacher": teacher.sources(), "data": datamodule.fingerprint()}
    writer = Writer(
        Path(output).expanduser(),
        fingerprint,
        codec.settings(),
        codec.columns(codec.encode(example)),
        size,
    )
    todo = {name: writer.open(name, _rows(sources)) for name, (sources, _) in tables.items()}
    total = sum(stop - start for ranges in todo.values() for _, start, stop in ranges)
    with progress(total) as advance:
        for name, ranges in todo.items():
            for number, start, stop in ranges:
                parts: list[dict[str, Tensor]] = []
                places: list[Tensor] = []
                for batch, place in _batches(*tables[name], start, stop, size):
                    found = codec.encode(teacher(batch.to(device)))
                    _check_shapes(found, writer.columns)
                    parts.append({n: t[: len(place)] for n, t in found.items()})
                    places.append(place)
                    advance(len(place))
                order = torch.argsort(torch.cat(places))
                writer.put(
                    name,
                    number,
                    {n: torch.cat([p[n] for p in parts])[order].numpy() for n in parts[0]},
                )
    return writer.manifest.folder
