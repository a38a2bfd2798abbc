"""A teacher whose outputs were computed once and are replayed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.sparse import TopKOutput
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.cache.codec import Codec
from kd_lightning.teachers.cache.manifest import Manifest, describe_difference
from kd_lightning.teachers.cache.opening import open_tables, table_name
from kd_lightning.teachers.cache.opening import verify_cache as verify_cache
from kd_lightning.teachers.cache.schema import Json
from kd_lightning.teachers.cache.table import Table
from kd_lightning.types import CLEAN, Batch, JoinedOutput, Output
from kd_lightning.values import Values
from kd_lightning.weights import sha256_of

Rest = Literal["cell", "none"]
"""What becomes of the classes that a top-k cache does not hold; see CachedTeacher."""


class CachedTeacher(Teacher):
    """Outputs that `kd cache` (or `cache_teacher`) computed, in place of the live teacher.

    Outputs are found by split, view and index, so that no order of the data can assign a sample
    another sample's target. Full fp32 caches replay the live teacher bit for bit if it sees batches
    of the shape that the cache was made with; otherwise logits differ by up to about 1e-5, since
    kernels depend on the batch's shape.

    The loader joins the outputs to each batch on the CPU, so that no training step copies an index
    back from the device.

    Args:
        path: folder of the cache.
        sha256: checksums that the teacher's files must have had, in order.
        budget_mb: a cache of up to this size is memory-mapped; of a larger one only the rows of a
            batch are ever in memory.
        top_k: read a top-k cache as if it held only this many classes of each row, so that one
            cache serves a study of several sizes; `None`: all that it holds.
        rest: "cell": the probability of all other classes is one more event. "none": it is left
            out, as other frameworks do, and the student learns to give these classes nothing.

    Raises:
        UserError: from `prepare`, if the cache is missing, damaged or unfinished, or was made for
            other data, another augmentation or another teacher, or does not fit the options.
    """

    def __init__(
        self,
        path: str,
        sha256: list[str] | None = None,
        budget_mb: int = 256,
        top_k: int | None = None,
        rest: Rest = "cell",
    ) -> None:
        super().__init__()
        self.path = Path(path).expanduser()
        self.sha256 = sha256
        self.budget = budget_mb * 2**20
        self.top_k = top_k
        self.rest = rest
        self._tables: dict[str, Table] = {}
        self._manifest: Manifest | None = None
        self._codec = Codec()

    def prepare(self, datamodule: DataModule) -> None:
        """Open the cache, and check that it was made for this data.

        Args:
            datamodule: the data.

        Raises:
            UserError: see the class.
        """
        manifest = Manifest.read(self.path)
        self._codec = Codec.of(manifest)
        self._check_top_k()
        present = cast(Values, datamodule.fingerprint())
        difference = describe_difference(manifest.data(), present)
        if difference:
            raise UserError(
                f"the teacher cache {self.path} was made for other data: {difference}"
            )
        sources = manifest.teachers()
        # Their order counts: it is that of an ensemble's members.
        stored = [source.get("sha256") for source in sources]
        if self.sha256 is not None and list(self.sha256) != stored:
            raise UserError(
                f"the teacher cache {self.path} is of another teacher: sha256 {stored}, not "
                f"{self.sha256}"
            )
        for source in sources:
            self._check_unchanged(source)
        fits = manifest.bytes <= self.budget
        # Mapped pages count as memory of the process, and a large cache would fill it.
        self._tables = open_tables(manifest, mapped=fits)
        self._manifest = manifest
        self._check_views(datamodule)
        super().prepare(datamodule)

    def _check_top_k(self) -> None:
        """Refuse options that the cache cannot serve."""
        stored = self._codec.top_k
        if self.rest not in get_args(Rest):
            raise UserError(
                f"model.teacher.rest must be cell or none, got {self.rest!r}"
            )
        if stored is None and (self.top_k is not None or self.rest != "cell"):
            raise UserError(
                f"the teacher cache {self.path} holds all classes; model.teacher.top_k and rest "
                "are for caches of kd cache --top-k"
            )
        if self.top_k is not None and not 1 <= self.top_k <= (stored or 0):
            raise UserError(
                f"model.teacher.top_k must be from 1 to the {stored} classes that the cache "
                f"{self.path} holds, got {self.top_k}"
            )

    def _decoded(self, columns: dict[str, Tensor], positions: Tensor | None) -> Output:
        """The stored output, reduced to what the options ask for."""
        output = self._codec.decode(columns, positions)
        if not isinstance(output, TopKOutput):
            return output
        if self.top_k is not None:
            output = output.truncated(self.top_k)
        if self.rest == "cell":
            return output
        return output.without_rest()

    def _check_unchanged(self, source: dict[str, Json]) -> None:
        """Refuse a cache of weights that have changed; their file may be gone."""
        # A folder as the default: it is no file, so nothing is compared.
        path = Path(str(source.get("path") or "/"))
        if path.is_file() and sha256_of(path) != source.get("sha256"):
            raise UserError(
                f"the teacher {path} has changed since the cache {self.path} was made; "
                "make the cache again"
            )

    def _check_views(self, datamodule: DataModule) -> None:
        """Refuse data that is augmented in more ways than the cache holds."""
        # Without augmentation there is the clean view only, which `join` looks up.
        if not datamodule.augmented:
            return
        clean = table_name("train", CLEAN)
        cached = 0
        for name in self._tables:
            if name.startswith("train/") and name != clean:
                cached += 1
        wanted = datamodule.views
        if wanted is None or wanted > cached:
            raise UserError(
                f"the teacher cache {self.path} holds {cached} views of the training data and "
                f"this run asks for {wanted or 'a new one every epoch'}; set "
                f"--data.views={cached or 1}, or cache more views"
            )

    @property
    def exact_logits(self) -> bool:
        """Whether every logit is stored."""
        return self._codec.top_k is None

    def require_temperatures(self, temperatures: tuple[float, ...]) -> None:
        """Check that the cache can give distributions at these temperatures.

        Args:
            temperatures: of a loss.

        Raises:
            UserError: if a top-k cache does not store one of them.
        """
        stored = self._codec.temperatures
        missing = sorted(set(temperatures) - set(stored))
        if self._codec.top_k is None or not missing:
            return
        # The command of the message makes a cache for both.
        needed = sorted({*stored, *temperatures})
        wanted = " ".join(f"{value:g}" for value in needed)
        raise UserError(
            f"the top-k teacher cache {self.path} holds no temperature {missing[0]:g}; delete it and "
            f"make it again: kd cache ... --output {self.path} --top-k {self._codec.top_k} "
            f"--dtype {self._codec.dtype} --temperatures {wanted}"
        )

    @property
    def joins(self) -> bool:
        """Always: a step then copies no index back from the device."""
        return True

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        """Check that the cache holds the features of these roles; it has no modules.

        Args:
            roles: that losses read.

        Raises:
            UserError: if it does not hold one of them.
        """
        missing = sorted(roles - set(self._codec.features))
        if missing:
            raise UserError(
                f"a loss reads the teacher's layer {missing[0]!r}, which the cache {self.path} "
                "does not hold; use the live teacher, or cache it with kd cache --features"
            )
        return {}

    def probe(self, batch: Batch) -> Output:
        """An output of zeros, of the shapes that are stored.

        Args:
            batch: of the data's shapes; its samples are in no table.
        """
        assert self._manifest is not None, "prepare() comes first"
        blank = {}
        for name, column in self._manifest.columns.items():
            shape = (len(batch), *column.shape)
            zeros = torch.from_numpy(np.zeros(shape, dtype=column.dtype))
            blank[name] = zeros.to(batch.target.device)
        return self._decoded(blank, None)

    def join(self, batch: Batch, index: Tensor) -> Batch:
        """Add the stored outputs to a batch.

        Args:
            batch: on the CPU or, if its samples are resident, on the device.
            index: `batch.index` on the CPU, int64 `(B,)`.

        Raises:
            UserError: if the cache does not hold one of the samples in its view.
        """
        columns = self._read(batch, index)
        device = batch.target.device
        if device.type != "cpu":
            # The samples are resident on the device; pinned copies do not block.
            for name, column in columns.items():
                columns[name] = column.pin_memory().to(device, non_blocking=True)
        output = self._decoded(columns, batch.positions)
        batch.joined = JoinedOutput(output)
        return batch

    def _read(self, batch: Batch, index: Tensor) -> dict[str, Tensor]:
        """The stored columns of a batch, on the CPU."""
        view = batch.view
        if isinstance(view, int):
            return self._table(batch.split, view).read(index)
        # Several views: read each from its table, then put the rows in the batch's order.
        views = view.cpu()
        parts = []
        places = []
        for each in views.unique().tolist():
            place = torch.nonzero(views == each).flatten()
            table = self._table(batch.split, each)
            parts.append(table.read(index[place]))
            places.append(place)
        # The inverse of the permutation that the tables' order is.
        order = torch.argsort(torch.cat(places))
        joined = {}
        for name in parts[0]:
            column = torch.cat([part[name] for part in parts])
            joined[name] = column[order]
        return joined

    def _table(self, split: str, view: int) -> Table:
        """The table of a split in a view."""
        name = table_name(split, view)
        if name not in self._tables:
            raise UserError(
                f"the teacher cache {self.path} holds nothing for the {split} split in view "
                f"{'clean' if view == CLEAN else view}; it holds {', '.join(self._tables)}"
            )
        return self._tables[name]

    def outputs(self, batch: Batch) -> Output:
        """The stored outputs of a batch, `(N, K)` logits.

        Args:
            batch: that `join` has completed, or any other.
        """
        if batch.joined is not None:
            return batch.joined.output
        # A loop of one's own that does not join: the index must come back from the device.
        columns = self._read(batch, batch.index.cpu())
        device = batch.target.device
        for name, column in columns.items():
            columns[name] = column.to(device)
        return self._decoded(columns, batch.positions)

    def forward(self, batch: Batch) -> Output:
        """The stored outputs of a batch, `(N, K)` logits.

        Args:
            batch: see `outputs`.

        Raises:
            UserError: if `prepare` was not called.
        """
        # What is read from a file has no graph that no_grad would have to cut.
        if self.ready:
            return self.outputs(batch)
        return super().forward(batch)

    def sources(self) -> list[dict[str, object]]:
        """The sources of the teacher that was cached, each with the cache's folder."""
        if self._manifest is None:
            return []
        cache = str(self.path.resolve())
        sources: list[dict[str, object]] = []
        for source in self._manifest.teachers():
            sources.append({**source, "cache": cache})
        return sources
