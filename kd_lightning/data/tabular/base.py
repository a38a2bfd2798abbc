"""The base of the datamodules for tables: splits, subsets, features and targets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Unpack, cast

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.files import checksum
from kd_lightning.data.subsets import (
    TrainingSplit,
    split_training_rows,
    stratified_rank,
)
from kd_lightning.data.tabular.features import FeatureEncoder, check_features, column_of
from kd_lightning.data.tabular.files import Table, consistent_labels, num_rows, rows_of
from kd_lightning.data.tabular.fitting import fit_features
from kd_lightning.data.tabular.new_samples import RowReader
from kd_lightning.data.tabular.options import TableOptions, TableSettings
from kd_lightning.data.tabular.source import TableSource
from kd_lightning.data.text.labels import classes_spelled_alike, rare_classes
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.types import UNLABELLED


class TableDataModule(DataModule):
    """Base of the datamodules whose samples are rows of a table.

    A subclass implements `read`. Inputs are float32 vectors of F values: one per column of numbers
    and one per category. All statistics are those of the training samples without the held-out
    ones, before `fraction`: a teacher and its students see the same inputs, whatever share of the
    samples they train on.

    Args:
        name: of the data, for messages and checkpoints.
        task: how the target columns are read, and what is predicted from them.
        target: the target columns. An empty cell is an unknown target: soft losses count its
            sample, hard losses do not.
        options: see TableSettings.

    Raises:
        UserError: for an option out of range.
    """

    name: str

    def __init__(
        self,
        name: str,
        task: Task,
        target: Sequence[str],
        **options: Unpack[TableOptions],
    ) -> None:
        super().__init__()
        self.name = name
        self.task = task
        self.target = list(target)
        self.settings = TableSettings(**options)
        self.batch_size = self.settings.batch_size
        self.eval_batch_size = self.settings.eval_batch_size
        self.resident = self.settings.resident
        self.prefetch = self.settings.prefetch
        self.drop_last = self.settings.drop_last
        self.balanced = self.settings.balanced
        self._tables: dict[str, Table] = {}
        self._encoded: dict[str, tuple[Tensor, Tensor]] = {}
        self._sources: dict[str, TableSource] = {}
        self._division: TrainingSplit | None = None
        self._encoder: FeatureEncoder | None = None
        self._target_names: tuple[str, ...] | None = None
        self._restored_spec: Spec | None = None

    # -- tables -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def has_test_table(self) -> bool:
        """Whether the test samples have a table of their own."""

    @abstractmethod
    def read(self, split: str) -> Table:
        """Read a table: "train", or "test" if there is one.

        Raises:
            UserError: if it is not available.
        """

    def table(self, split: str) -> Table:
        """All samples of a source split, read once."""
        if split not in self._tables:
            if self.has_test_table:
                self._tables[split] = self.read(split)
            else:
                self._divide_table()
        return self._tables[split]

    def _divide_table(self) -> None:
        """Divide the only table into training and test samples."""
        table = self.read("train")
        columns = self._target_columns(table)
        if self._target_names is None:
            self._target_names = self.task.target_names(columns)
        target = self.task.encode_target(columns, self._target_names)
        self._report_odd_classes(target, self._target_names)
        # Stratified, so that both tables have all classes in the same shares.
        strata = self.task.strata(target)
        index = torch.arange(num_rows(table))
        rank = stratified_rank(strata, index, self.settings.test_seed, "table-test")
        in_test = rank < self.settings.test_fraction
        train_rows = index[~in_test].numpy()
        test_rows = index[in_test].numpy()
        self._tables["train"] = rows_of(table, train_rows)
        self._tables["test"] = rows_of(table, test_rows)

    def _target_columns(self, table: Table) -> Table:
        columns: Table = {}
        for name in self.target:
            columns[name] = consistent_labels(column_of(table, name, "data.target"))
        return columns

    def _report_odd_classes(self, target: Tensor, names: Sequence[str]) -> None:
        """Print a line if classes `(N,)` are so rare, or spelled so alike, that they may be mistakes."""
        # Only single class labels have classes that may be rare.
        if target.dim() != 1 or target.is_floating_point():
            return
        counts = torch.bincount(target[target >= 0], minlength=len(names)).tolist()
        rare = rare_classes(dict(zip(names, counts, strict=True)))
        if rare:
            print(
                f"data: few samples have the classes {rare} in column {self.target[0]!r}; if these "
                "are mistakes, correct the file"
            )
        alike = classes_spelled_alike(names)
        if alike:
            print(
                f"data: the classes {alike} in column {self.target[0]!r} differ only in capital "
                "letters, spaces or forms of characters; if they are one class, correct the file"
            )

    # -- features and targets ---------------------------------------------------------------------

    @property
    def target_names(self) -> tuple[str, ...]:
        """The classes, labels or values that are predicted."""
        train = self.table("train") if self._target_names is None else {}
        # Dividing the only table finds the names, too.
        if self._target_names is None:
            columns = self._target_columns(train)
            self._target_names = self.task.target_names(columns)
            target = self.task.encode_target(columns, self._target_names)
            self._report_odd_classes(target, self._target_names)
        # Stratified, so that both tables have all classes in the same shares.
        return self._target_names

    @property
    def encoder(self) -> FeatureEncoder:
        """Encodes the features, by the statistics of the training samples."""
        if self._encoder is None:
            table = self.table("train")
            held_out = self._divide().validation
            # Statistics of validation samples would leak into training.
            fits = np.ones(num_rows(table), dtype=np.bool_)
            fits[held_out.numpy()] = False
            self._encoder = fit_features(
                table,
                self._feature_names(table),
                self.settings.categorical,
                np.flatnonzero(fits),
                self.settings.standardize,
                self.settings.impute,
                self.settings.unknown_category,
            )
        return self._encoder

    def _feature_names(self, table: Table) -> list[str]:
        names = self.settings.features
        # All columns but the target, if the user names none.
        if names is None:
            names = []
            for name in table:
                if name not in self.target:
                    names.append(name)
        check_features(names, self.settings.categorical, self.target)
        return names

    def _target(self, split: str) -> Tensor:
        columns = self._target_columns(self.table(split))
        return self.task.encode_target(columns, self.target_names)

    def encoded(self, split: str) -> tuple[Tensor, Tensor]:
        """The inputs `(N, F)` and the target `(N, *S)` of a whole source split."""
        if split not in self._encoded:
            inputs = self.encoder.encode(self.table(split))
            self._encoded[split] = (inputs, self._target(split))
        return self._encoded[split]

    # -- sources ----------------------------------------------------------------------------------

    def _divide(self) -> TrainingSplit:
        """The rows of the training table by use."""
        if self._division is None:
            self._division = split_training_rows(
                self.task.strata(self._target("train")),
                self.settings.split_seed,
                self.settings.validation,
                self.settings.fraction,
                self.settings.label_fraction,
            )
        return self._division

    def source(self, stage: str) -> TableSource:
        """The samples of "train", "validation" or "test"."""
        if stage not in self._sources:
            self._sources[stage] = self._make_source(stage)
        return self._sources[stage]

    def _make_source(self, stage: str) -> TableSource:
        if stage == "test":
            inputs, target = self.encoded("test")
            return TableSource(inputs, target, torch.arange(len(target)), "test")
        inputs, target = self.encoded("train")
        division = self._divide()
        if stage == "validation":
            return TableSource(inputs, target, division.validation, "train")
        # Change a copy: validation samples share this target and keep their labels.
        visible = target.clone()
        # Real-valued targets have no class to spare, so NaN marks a missing one.
        visible[division.withheld] = (
            torch.nan if target.is_floating_point() else UNLABELLED
        )
        return TableSource(inputs, visible, division.train, "train")

    # -- description and checkpoints --------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """The encoded columns as the network sees them, and the sizes of the splits."""
        if self._restored_spec is not None:
            return self._restored_spec
        _, target = self.encoded("train")
        means: list[float] = []
        stds: list[float] = []
        for mean, std in self.encoder.scaling:
            means.append(mean)
            stds.append(std)
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=(len(means),),
            num_classes=len(self.target_names),
            classes=self.target_names,
            samples=self._samples_per_stage(),
            source_samples=len(target),
            target_shape=tuple(target.shape[1:]),
            mean=tuple(means),
            std=tuple(stds),
        )

    def fingerprint(self) -> dict[str, object]:
        """What decides a teacher's inputs: the samples, the columns and their encoding."""
        samples = {}
        for split in ("train", "test"):
            inputs, target = self.encoded(split)
            samples[split] = checksum(inputs, target)
        return {
            "data": self.name,
            "samples": samples,
            "features": self.encoder.state(),
            "target": self.target,
            "classes": list(self.target_names),
        }

    def checkpoint_state(self) -> dict[str, object]:
        """The encoding of features and targets, which gives a network's numbers their meaning."""
        return {"features": self.encoder.state(), "classes": list(self.target_names)}

    def restore(self, state: Mapping[str, object], spec: Spec) -> None:
        """Encode tables as the data of a checkpoint did, even if its training file is missing.

        Args:
            state: what `checkpoint_state` returned.
            spec: the spec of that data.
        """
        described = cast(Sequence[Mapping[str, object]], state["features"])
        self._encoder = FeatureEncoder.from_state(described)
        self._target_names = tuple(cast(Sequence[str], state["classes"]))
        # The spec of the checkpoint then stands for that of the data.
        if not self.has_training_table:
            self._restored_spec = spec

    def input_reader(self) -> RowReader:
        """Reads rows of files with the columns of the training table."""
        return RowReader(self.encoder)

    @property
    def has_training_table(self) -> bool:
        """Whether the training samples are available."""
        return True
