"""How a teacher's outputs are stored: in full, or the K largest logits of each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.sparse import TopKOutput, log_sum_of_others
from kd_lightning.teachers.cache import codec_settings, schema
from kd_lightning.teachers.cache.manifest import Column, Manifest
from kd_lightning.teachers.cache.packing import pack, packed_size, unpack
from kd_lightning.teachers.cache.schema import Json, SchemaError
from kd_lightning.types import EnsembleOutput, Output, full, mean_log_probs

FEATURE = "feature."
"""Prefix of the columns that hold features."""


@dataclass(frozen=True)
class Codec:
    """Turns Outputs into columns, one entry per sample, and back.

    With `top_k` only the largest logits of a row are stored, their classes in as few bits as
    possible, and the log-sum-exp of all others at each of `temperatures`; see TopKOutput.

    Attributes:
        dtype: "fp32", exact; or "fp16", half the size, with a relative error of up to 2**-11.
        top_k: how many logits of each row are stored; `None`: all.
        classes: K of the data.
        weights: of an arithmetic ensemble's members, whose logits are then stored separately.
        features: roles of the features that are stored besides.
        positions: rows per sample; 1 for one label per sample, H * W for pixels.
        temperatures: of a top-k cache, ascending: those at which losses and metrics can read it.
    """

    dtype: str = "fp32"
    top_k: int | None = None
    classes: int = 0
    weights: tuple[float, ...] | None = None
    features: tuple[str, ...] = ()
    positions: int = 1
    temperatures: tuple[float, ...] = ()

    def settings(self) -> dict[str, Json]:
        """The codec in plain values, for the cache's manifest."""
        settings: dict[str, Json] = {
            "dtype": self.dtype,
            "top_k": self.top_k,
            "classes": self.classes,
            "weights": None if self.weights is None else list(self.weights),
            "features": list(self.features),
        }
        # Caches of earlier versions have neither entry, and their manifests must stay
        # valid.
        if self.positions != 1:
            settings["positions"] = self.positions
        if self.top_k is not None:
            settings["temperatures"] = list(self.temperatures)
        return settings

    @classmethod
    def of(cls, manifest: Manifest) -> Codec:
        """The codec that a manifest describes.

        Args:
            manifest: of the cache.

        Raises:
            UserError: if its settings are damaged, or do not fit its columns.
        """
        settings = manifest.content["settings"]
        try:
            codec = cls(
                dtype=schema.text(settings, "dtype", "settings"),
                top_k=codec_settings.top_k(settings),
                classes=schema.integer(settings, "classes", "settings"),
                weights=codec_settings.numbers(settings, "weights"),
                features=codec_settings.names(settings, "features"),
                positions=codec_settings.positions(settings),
                temperatures=codec_settings.numbers(settings, "temperatures") or (),
            )
            codec._check_columns(manifest.columns)
        except SchemaError as error:
            raise manifest.damaged(str(error)) from error
        return codec

    def _check_columns(self, columns: Mapping[str, Column]) -> None:
        """Check that the settings describe these columns, in this order."""
        if self.dtype not in ("fp32", "fp16"):
            raise SchemaError(f"settings.dtype is {self.dtype!r}")
        shapes = self._row_shapes()
        features = [FEATURE + role for role in self.features]
        expected = [*shapes, *features]
        if list(columns) != expected:
            raise SchemaError(
                f"its columns are not {', '.join(expected)}, as its settings imply"
            )
        for name, column in columns.items():
            # A feature may have any shape.
            any_feature = Column(self._float_name, column.shape)
            expected_column = shapes.get(name, any_feature)
            if column != expected_column:
                dtype = expected_column.dtype
                shape = list(expected_column.shape)
                raise SchemaError(f"the column {name} is not {dtype} {shape}")

    def _row_shapes(self) -> dict[str, Column]:
        """The columns of the logits."""
        kind = self._float_name
        if self.top_k is not None:
            # The remaining classes share what `rest` holds at each temperature.
            if not self.top_k < self.classes or not self.temperatures:
                raise SchemaError(
                    "its settings of top_k, classes and temperatures do not fit"
                )
            columns = {
                "values": Column(kind, (self.top_k,)),
                "ids": Column("uint8", (packed_size(self.top_k, self.classes),)),
                "rest": Column("float32", (len(self.temperatures),)),
            }
        elif self.weights is not None:
            shape = (len(self.weights), self.classes)
            columns = {"members": Column(kind, shape)}
        else:
            columns = {"logits": Column(kind, (self.classes,))}
        if self.positions > 1:
            for column in columns.values():
                column.shape = (self.positions, *column.shape)
        return columns

    @property
    def _float_name(self) -> str:
        """Numpy's name of the dtype."""
        return "float16" if self.dtype == "fp16" else "float32"

    @classmethod
    def for_output(
        cls,
        output: Output,
        dtype: str,
        top_k: int | None,
        samples: int,
        temperatures: Sequence[float] = (),
    ) -> Codec:
        """The codec for outputs like this one.

        Args:
            output: of a batch in which every position is predicted.
            dtype, top_k: see the attributes.
            samples: of the batch.
            temperatures: of the losses that will read a top-k cache. Metrics read it at 1.

        Raises:
            UserError: if `top_k` is not smaller than the number of classes, or if it is combined
                with an arithmetic ensemble, or for a temperature that is not positive.
        """
        # Every sample has the same number of positions, so that a row can be found by division.
        rows, classes = output.logits.shape
        if top_k is not None and not 1 <= top_k < classes:
            raise UserError(
                f"--top-k must be at least 1 and less than the {classes} classes, got {top_k}"
            )
        _check_temperatures(temperatures)
        weights = None
        if isinstance(output, EnsembleOutput):
            if top_k is not None:
                raise UserError(
                    "--top-k cannot hold an arithmetic ensemble: its mean differs at every "
                    "temperature; cache it in full, or use --model.teacher.mean=geometric"
                )
            weights = tuple(output.weights.double().tolist())
        stored: tuple[float, ...] = ()
        if top_k is not None:
            # Each once, and that of the metrics.
            distinct = {1.0, *map(float, temperatures)}
            stored = tuple(sorted(distinct))
        return cls(
            dtype=dtype,
            top_k=top_k,
            classes=classes,
            weights=weights,
            features=tuple(sorted(output.features)),
            positions=rows // samples,
            temperatures=stored,
        )

    @property
    def _float(self) -> torch.dtype:
        """Torch's dtype."""
        return torch.float16 if self.dtype == "fp16" else torch.float32

    def encode(self, output: Output) -> dict[str, Tensor]:
        """The columns of a batch, `(B, ...)` each, on the CPU.

        Args:
            output: of a batch in which every position is predicted.
        """
        # The columns in the order of `_row_shapes`; a manifest's checksum depends on it.
        columns = {}
        if self.top_k is not None:
            columns = self._encode_top_k(full(output.logits), self.top_k)
        elif isinstance(output, EnsembleOutput):
            columns["members"] = self._stored(output.members)
        else:
            columns["logits"] = self._stored(output.logits)
        if self.positions > 1:
            # A shard is read by sample: one entry holds the rows of all its positions.
            for name, column in columns.items():
                columns[name] = column.unflatten(0, (-1, self.positions))
        for role in self.features:
            feature = output.features[role]
            columns[FEATURE + role] = self._stored(feature)
        for name, column in columns.items():
            columns[name] = column.detach().cpu()
        return columns

    def _stored(self, values: Tensor) -> Tensor:
        """Values in the dtype of the cache.

        Raises:
            UserError: if half precision cannot hold them.
        """
        stored = values.to(self._float)
        if self.dtype != "fp16":
            return stored
        # The teacher's own infinities are no fault of the dtype.
        overflows = bool(stored.isinf().any())
        if overflows and bool(values.isfinite().all()):
            largest = values.abs().max().item()
            raise UserError(
                f"the teacher's outputs reach {largest:.3g}, and fp16 holds up to "
                "65,504; use --dtype fp32"
            )
        return stored

    def _encode_top_k(self, logits: Tensor, top_k: int) -> dict[str, Tensor]:
        """The columns of top-k outputs, `(N, ...)` each, from logits `(N, K)`."""
        values, indices = logits.topk(top_k, dim=-1)
        smallest = torch.finfo(torch.float32).min
        rest = []
        for temperature in self.temperatures:
            others = log_sum_of_others(logits / temperature, indices)
            # Other classes that are all impossible have the probability 0, not a NaN.
            rest.append(others.float().clamp(min=smallest))
        return {
            "values": self._stored(values),
            "ids": pack(indices, self.classes),
            "rest": torch.cat(rest, dim=-1),
        }

    def columns(self, example: dict[str, Tensor]) -> dict[str, Column]:
        """The description of columns like these.

        Args:
            example: `(B, ...)` each.
        """
        described = {}
        for name, tensor in example.items():
            dtype = str(tensor.numpy().dtype)
            shape = tuple(tensor.shape[1:])
            described[name] = Column(dtype, shape)
        return described

    def decode(
        self, columns: dict[str, Tensor], positions: Tensor | None = None
    ) -> Output:
        """The Output that was stored, on the columns' device; top-k outputs stay sparse.

        Args:
            columns: `(B, ...)` each.
            positions: `Batch.positions`, if not all positions are predicted.
        """
        features = {}
        for role in self.features:
            features[role] = columns[FEATURE + role]
        rows = {}
        for name, column in columns.items():
            if not name.startswith(FEATURE):
                rows[name] = self._rows(column, positions)
        if self.top_k is not None:
            return TopKOutput(
                rows["values"],
                unpack(rows["ids"], self.top_k, self.classes),
                rows["rest"],
                self.temperatures,
                self.classes,
                features,
            )
        if self.weights is not None:
            members = rows["members"]
            dtype = full(members).dtype
            weights = torch.tensor(self.weights, device=members.device, dtype=dtype)
            mean = mean_log_probs(members, weights)
            return EnsembleOutput(mean, features, members=members, weights=weights)
        return Output(rows["logits"], features)

    def _rows(self, column: Tensor, positions: Tensor | None) -> Tensor:
        """One row per predicted position from one entry per sample."""
        rows = column
        if self.positions > 1:
            rows = column.flatten(0, 1)
        # `None` means that all positions are predicted.
        if positions is None:
            return rows
        # Void positions are stored, but not predicted.
        return rows.index_select(0, positions)


def _check_temperatures(temperatures: Sequence[float]) -> None:
    """Refuse temperatures at which there is no distribution."""
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise UserError(
            f"a cache's temperatures must be finite and greater than 0, got {list(temperatures)}"
        )
