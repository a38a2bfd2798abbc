"""The interface of a task, and how a network's raw output becomes one row per predicted position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.metrics import TaskMetrics
from kd_lightning.spec import Spec
from kd_lightning.tasks.columns import Column
from kd_lightning.types import Batch, Output


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction of a test, to be shown to a person.

    Attributes:
        index: the sample's row in the test split.
        caption: the guess, its confidence, and what would have been right.
    """

    index: int
    caption: str


class Task(ABC):
    """What is predicted, and everything that depends on it outside the losses.

    The datamodule owns its task; modules, runs and experiments ask the task instead of assuming
    classification.

    Attributes:
        name: identifies the task in specs and checkpoints.
        monitor: the metric that selects `best.ckpt` on the validation split.
        mode: whether a larger ("max") or a smaller ("min") value of `monitor` is better.
        count: the metric that experiments compare over seeds and test samples; smaller is better.
        count_is_sum: whether `count` is a sum over samples, so that a bootstrap can resample them.
    """

    name: ClassVar[str]
    monitor: ClassVar[str]
    mode: ClassVar[Literal["max", "min"]]
    count: ClassVar[str]
    count_is_sum: ClassVar[bool] = True

    def describe(self) -> dict[str, str]:
        """What a run's record says about its task, for experiments and comparisons."""
        return {
            "name": self.name,
            "monitor": self.monitor,
            "mode": self.mode,
            "count": self.count,
        }

    @abstractmethod
    def metrics(self, spec: Spec) -> TaskMetrics:
        """Fresh metrics for data of this kind."""

    def rows(self, logits: Tensor, batch: Batch) -> Tensor:
        """Turn a network's output for a batch into one row per predicted position.

        Args:
            logits: as the network returned them, `(B, *S, K)` or `(B, K, *S)`.
            batch: its `target` has the shape `(B, *S)`.

        Returns:
            `(N, K)`; the tensor itself if there is one position per sample.
        """
        return rows_of_positions(logits, batch)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What a deployed network returns: probabilities at temperature 1, or real values.

        Args:
            logits: as the network returned them, `(B, *S, K)`.

        Returns:
            A tensor of the same shape.
        """
        return logits.softmax(-1)

    def row_width(self, spec: Spec) -> int:
        """K, the width of a row."""
        return spec.num_classes

    def blank_target(self, spec: Spec, samples: int) -> Tensor:
        """A target `(samples, *S)` that fits the spec and carries no information."""
        return torch.zeros(samples, *spec.target_shape, dtype=torch.int64)

    def output_problem(self, network: str, logits: Tensor, spec: Spec) -> str | None:
        """Describe why rows of logits do not fit the data; `None` if they do.

        Args:
            network: what the message calls the network.
            logits: `(N, K')`, the rows of a blank batch.
            spec: of the data.
        """
        if logits.ndim == 2 and logits.shape[1] == self.row_width(spec):
            return None
        return (
            f"{network} gives outputs of shape {list(logits.shape[1:])} per sample; "
            f"the data {spec.data} has {spec.num_classes} classes"
        )

    # -- targets in the columns of a table --------------------------------------------------------

    def target_names(self, columns: Mapping[str, Column]) -> tuple[str, ...]:
        """The names of the K classes, labels or values that the target columns hold.

        Args:
            columns: the target columns of the training file, by name.

        Raises:
            UserError: if the columns do not fit the task.
        """
        raise UserError(
            f"the targets of {self.name} cannot be read from columns of a table"
        )

    def encode_target(
        self, columns: Mapping[str, Column], names: tuple[str, ...]
    ) -> Tensor:
        """The target `(N, *S)` that the columns of N rows hold; missing values are unlabelled.

        Args:
            columns: the target columns of any file, by name.
            names: what `target_names` returned for the training file.

        Raises:
            UserError: if a value is not valid.
        """
        raise UserError(
            f"the targets of {self.name} cannot be read from columns of a table"
        )

    def strata(self, target: Tensor) -> Tensor:
        """Which samples a random split must divide in equal shares, int64 `(N,)` from 0.

        Args:
            target: `(N, *S)`, of all samples.
        """
        return torch.zeros(len(target), dtype=torch.int64)

    # -- what a test stores -----------------------------------------------------------------------

    @abstractmethod
    def test_outputs(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """What a test stores of each sample; every tensor has the batch's B samples first.

        `index` `(B,)` is always among them, so that the samples can be put in order.
        """

    def predictions(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """What `kd predict` stores of each sample: `test_outputs` without the target."""
        # Data to predict has no labels; a blank target in the file would look like one.
        stored = dict(self.test_outputs(output, batch))
        stored.pop("target", None)
        return stored

    @abstractmethod
    def sample_counts(self, stored: dict[str, Tensor]) -> Tensor:
        """The contribution of each test sample to `count`, float64 `(N,)`; NaN if unlabelled.

        Experiments resample these values in their bootstrap tests.

        Args:
            stored: the `test_outputs` of all samples.
        """

    def mistakes(
        self,
        stored: dict[str, Tensor],
        spec: Spec,
        most: int,
    ) -> Sequence[Mistake]:
        """The most confident mistakes of a test; none if the task has no notion of a mistake.

        Args:
            stored: the `test_outputs` of all samples, each of shape `(N, ...)`.
            spec: of the data; it names the classes.
            most: the largest number of mistakes to return.
        """
        return []

    def confusion(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Labels and predicted classes `(N,)` for a confusion matrix; `None` if there is none."""
        return None


def rows_of_positions(logits: Tensor, batch: Batch) -> Tensor:
    """Logits `(N, K)`, one row per predicted position.

    Args:
        logits: `(B, *S, K)`, or torch's layout of maps `(B, K, *S)`.
        batch: with `target` `(B, *S)` and `positions`.

    Raises:
        UserError: if the logits do not have the target's positions.
    """
    shape = batch.target.shape
    without_last = logits.shape[:-1]
    without_second = logits.shape[:1] + logits.shape[2:]
    # `(B, *S, K)` is tried first: if K equals a side of S, both layouts would fit.
    if without_last == shape:
        grid = logits
    elif logits.ndim > 2 and without_second == shape:
        grid = logits.movedim(1, -1)
    else:
        raise UserError(
            f"the network returned logits of shape {list(logits.shape)} for targets of shape "
            f"{list(shape)}; the targets need {[*shape, 'K']}, or K in second place"
        )
    flat = grid if grid.ndim == 2 else grid.flatten(0, -2)
    if batch.positions is None:
        return flat
    return flat.index_select(0, batch.positions)


def values_of_positions(logits: Tensor, batch: Batch) -> Tensor:
    """One logit `(N,)` per predicted position, for tasks whose network returns one per target.

    Args:
        logits: `(B, *S)`.
        batch: with `target` `(B, *S)` and `positions`.

    Raises:
        UserError: if the logits do not have the target's shape.
    """
    if logits.shape != batch.target.shape:
        raise UserError(
            f"the network returned outputs of shape {list(logits.shape)} for targets of shape "
            f"{list(batch.target.shape)}; both must be equal"
        )
    values = logits.flatten()
    if batch.positions is None:
        return values
    return values.index_select(0, batch.positions)
