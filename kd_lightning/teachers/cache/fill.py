"""Computes a teacher's outputs once, for `CachedTeacher` to replay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.datamodule import STAGES, DataModule
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.limits import MAX_VIEWS
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.cache.codec import Codec
from kd_lightning.teachers.cache.files import check_space, only_writer
from kd_lightning.teachers.cache.manifest import Column, record_dtype
from kd_lightning.teachers.cache.opening import table_name
from kd_lightning.teachers.cache.writer import Writer
from kd_lightning.types import CLEAN, Batch
from kd_lightning.values import Value, Values

Tables = dict[str, tuple[list[Source], int]]
"""The tables of a cache: for each name the sources whose samples it holds, and the view."""

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given the number of samples to compute, a context whose value is called with each count done."""


def planned_tables(datamodule: DataModule, views: int) -> Tables:
    """The tables of a cache: for each name the sources whose samples it holds, and the view.

    Args:
        datamodule: the data.
        views: draws of the augmentation.
    """
    tables: Tables = {}
    for stage in STAGES:
        source = datamodule.source(stage)
        if len(source) == 0:
            continue
        augmented = datamodule.augmented and stage == "train"
        for view in range(views) if augmented else [CLEAN]:
            name = table_name(source.split, view)
            # Validation rows are rows of the train split, and share its tables.
            sources, _ = tables.setdefault(name, ([], view))
            sources.append(source)
    return tables


def _batches(
    sources: list[Source],
    view: int,
    start: int,
    stop: int,
    size: int,
) -> Iterator[tuple[Batch, Tensor]]:
    """Rows `start` to `stop` of the joined sources, in batches of exactly `size` samples.

    A batch at the end of a source is filled up with that source's first samples: the kernels that a
    batch meets, and so the last bits of its outputs, depend on its shape. Samples that have lengths
    come in that order, so that little is spent on padding.

    Yields:
        A batch, and where its samples stand, counted from `start`. Samples beyond those are filling.
    """
    first = 0
    for source in sources:
        low = max(start - first, 0)
        high = min(stop - first, len(source))
        rows = torch.arange(low, max(low, high))
        lengths = source.lengths(view)
        if lengths is not None and len(rows) > 0:
            order = torch.argsort(lengths[rows], stable=True)
            rows = rows[order]
        for own in rows.split(size) if len(rows) > 0 else ():
            # A source that is smaller than the rest of the batch is repeated.
            missing = torch.arange(size - len(own))
            filling = missing % len(source)
            filled = torch.cat([own, filling])
            batch = source.batch(filled, view)
            # Void positions are stored, too: which ones are void may differ between tasks.
            batch.positions = None
            yield batch, own + (first - start)
        first += len(source)


def _check_shapes(values: dict[str, Tensor], columns: dict[str, Column]) -> None:
    """Refuse outputs whose shape depends on the sample."""
    for name, tensor in values.items():
        shape = tuple(tensor.shape[1:])
        expected = columns[name].shape
        if shape != expected:
            raise UserError(
                f"the teacher's {name} are {list(expected)} in one batch and "
                f"{list(shape)} in another; a cache holds outputs of one shape: use the "
                "live teacher for them"
            )


def _rows_of(sources: list[Source]) -> NDArray[np.int64]:
    """The rows of the source split that a table holds, in order."""
    rows = [source.rows.cpu().numpy() for source in sources]
    return np.concatenate(rows)


@contextlib.contextmanager
def _no_progress(total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def cache_teacher(
    teacher: Teacher,
    datamodule: DataModule,
    output: str | Path,
    views: int = 1,
    top_k: int | None = None,
    dtype: str = "fp32",
    features: tuple[str, ...] = (),
    device: torch.device | None = None,
    progress: Progress = _no_progress,
    temperatures: Sequence[float] = (),
) -> Path:
    """Compute a teacher's outputs for every sample and view, and store them in a folder.

    What is there already stays: an interrupted call continues, a damaged shard is computed again.

    Args:
        teacher: a live teacher.
        datamodule: its train, validation and test samples are cached, in batches of its
            `batch_size`.
        output: folder of the cache.
        views: draws of the augmentation, if there is one: epoch e trains on view `e mod views`.
        top_k, dtype: see Codec.
        features: roles of the teacher's layers to cache besides the logits.
        device: where the teacher runs; the CPU if left out.
        progress: shows how many samples are done.
        temperatures: of the losses that will read a top-k cache; 1 is always stored, for metrics.

    Raises:
        UserError: see Writer and Codec; also if the disk has no room, or another process is
            writing the cache.
    """
    check_sizes(views, top_k)
    if teacher.learns:
        raise UserError(
            f"{type(teacher).__name__} changes during training, so its outputs cannot be cached; "
            "cache a trained teacher"
        )
    device = device or torch.device("cpu")
    _prepare(teacher, datamodule, features, device)
    # Everything is planned before the folder is touched, so that a mistake leaves no trace.
    tables = planned_tables(datamodule, views)
    first_batch = _first_batch(tables, datamodule.batch_size)
    example = teacher(first_batch.to(device))
    codec = Codec.for_output(example, dtype, top_k, len(first_batch), temperatures)
    columns = codec.columns(codec.encode(example))
    folder = Path(output).expanduser()
    _check_space(folder, tables, columns)
    fingerprint = _fingerprint(teacher, datamodule)
    with only_writer(folder):
        size = datamodule.batch_size
        writer = Writer(folder, fingerprint, codec.settings(), columns, size)
        _fill(writer, teacher, codec, tables, device, progress)
    return folder


def _prepare(
    teacher: Teacher,
    datamodule: DataModule,
    features: tuple[str, ...],
    device: torch.device,
) -> None:
    """Load the teacher onto its device, and tap the layers that are cached, too."""
    teacher.prepare(datamodule)
    teacher.to(device)
    teacher.tap(set(features))


def _fingerprint(teacher: Teacher, datamodule: DataModule) -> dict[str, Value]:
    """Everything that decides the outputs, in plain values."""
    sources = cast(Sequence[Values], teacher.sources())
    data = cast(Values, datamodule.fingerprint())
    return {"teacher": sources, "data": data}


def _first_batch(tables: Tables, size: int) -> Batch:
    """One batch, which tells the shape of a row, and with it the columns of the cache."""
    sources, view = next(iter(tables.values()))
    batch, _ = next(_batches(sources, view, 0, 1, size))
    return batch


def _fill(
    writer: Writer,
    teacher: Teacher,
    codec: Codec,
    tables: Tables,
    device: torch.device,
    progress: Progress,
) -> None:
    """Compute and write the shards that are missing."""
    # All tables are opened first, so that the progress knows what is left.
    todo = {}
    total = 0
    for name, (sources, _) in tables.items():
        todo[name] = writer.open(name, _rows_of(sources))
        for _, start, stop in todo[name]:
            total += stop - start
    with progress(total) as advance:
        for name, ranges in todo.items():
            sources, view = tables[name]
            for shard, start, stop in ranges:
                batches = _batches(sources, view, start, stop, writer.align)
                columns = _compute(
                    teacher, codec, batches, writer.columns, device, advance
                )
                arrays = {}
                for key, value in columns.items():
                    arrays[key] = value.numpy()
                writer.put(name, shard, arrays)


def check_sizes(views: int, top_k: int | None) -> None:
    """Check the options that decide how much is planned, before anything is.

    Raises:
        UserError: if `views` or `top_k` is out of its range.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise UserError(f"--views must be from 1 to {MAX_VIEWS:,}, got {views}")
    if top_k is not None and top_k < 1:
        raise UserError(f"--top-k must be at least 1, got {top_k}")


def _check_space(
    folder: Path,
    tables: Tables,
    columns: dict[str, Column],
) -> None:
    """Check that the disk has room for all tables."""
    # Row numbers and the manifest are small beside the outputs.
    sample_bytes = record_dtype(columns).itemsize
    samples = 0
    for sources, _ in tables.values():
        samples += sum(len(source) for source in sources)
    described = (
        f"{samples:,} outputs in {len(tables):,} tables of {sample_bytes:,} bytes each"
    )
    check_space(folder, samples * sample_bytes, described)


def _compute(
    teacher: Teacher,
    codec: Codec,
    batches: Iterator[tuple[Batch, Tensor]],
    columns: dict[str, Column],
    device: torch.device,
    advance: Callable[[int], None],
) -> dict[str, Tensor]:
    """The columns of one shard, in the order of the table's rows."""
    parts: list[dict[str, Tensor]] = []
    places: list[Tensor] = []
    for batch, place in batches:
        values = codec.encode(teacher(batch.to(device)))
        _check_shapes(values, columns)
        # Beyond these stand samples that only filled the batch up.
        part = {}
        for name, tensor in values.items():
            part[name] = tensor[: len(place)]
        parts.append(part)
        places.append(place)
        advance(len(place))
    # Batches may come by length.
    order = torch.argsort(torch.cat(places))
    joined = {}
    for name in parts[0]:
        column_parts = [part[name] for part in parts]
        column = torch.cat(column_parts)
        joined[name] = column[order]
    return joined
