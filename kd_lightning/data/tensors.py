"""The easiest base class of one's own data: inputs and targets as tensors in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.data.datamodule import STAGES, DataModule
from kd_lightning.data.files import checksum
from kd_lightning.data.tabular.source import TableSource
from kd_lightning.errors import UserError
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.tasks.classification import Classification
from kd_lightning.types import UNLABELLED


class TensorDataModule(DataModule):
    """Serves tensors that a subclass loads. Everything of `kd` works with it, caches included.

    A subclass implements `load`. Use it as `--data=my_package.MyData`, or in Python.

    Example:
        >>> class Points(TensorDataModule):
        ...     def load(self, stage):
        ...         if stage == "validation":
        ...             return None
        ...         x = torch.randn(100, 2)
        ...         return x, (x[:, 0] > 0).long()
        >>> Points(batch_size=25).spec.num_classes
        2

    Args:
        batch_size: samples per training batch, on each device.
        eval_batch_size: samples per batch in validation, test and prediction.
        classes: names of the classes; the numbers from 0 if left out.
        task: what is predicted; one class per sample if left out.
        name: of the data, in messages and names of runs; the class's name if left out.
        drop_last: leave out the last batch of an epoch if it is smaller than the others.
        balanced: draw training samples so that all classes are equally frequent.
    """

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        classes: list[str] | None = None,
        task: Task | None = None,
        name: str | None = None,
        drop_last: bool = False,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise UserError(
                "data.batch_size and data.eval_batch_size must be at least 1"
            )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.task = task or Classification()
        self.name: str = name or type(self).__name__.lower()
        self.drop_last = drop_last
        self.balanced = balanced
        self._class_names = tuple(classes or ())
        self._loaded: dict[str, tuple[Tensor, Tensor]] = {}
        self._sources: dict[str, TableSource] = {}

    @abstractmethod
    def load(self, stage: str) -> tuple[Tensor, Tensor] | None:
        """The inputs `(n, ...)` and targets `(n, *S)` of "train", "validation" or "test".

        Targets are int64 class ids from 0, with -100 for samples without a label, or, for other
        tasks, what the task expects. `None`: there are no such samples.
        """

    # -- sources ----------------------------------------------------------------------------------

    def _samples(self, stage: str) -> tuple[Tensor, Tensor]:
        """The checked tensors of a stage; empty ones if it has no samples."""
        # `load` may take minutes, and several properties ask for its result.
        if stage in self._loaded:
            return self._loaded[stage]
        loaded = self.load(stage)
        if loaded is None:
            if stage == "train":
                raise UserError(
                    f"data: {type(self).__name__}.load('train') returned None"
                )
            inputs, target = self._samples("train")
            loaded = (inputs[:0], target[:0])
        self._check(stage, loaded)
        inputs, target = loaded
        if isinstance(self.task, Classification):
            # Cross-entropy needs int64, and users often have int32 or uint8.
            target = target.long()
        self._loaded[stage] = (inputs, target)
        return self._loaded[stage]

    def _check(self, stage: str, loaded: tuple[Tensor, Tensor]) -> None:
        where = f"data: {type(self).__name__}.load({stage!r})"
        is_pair = isinstance(loaded, tuple | list) and len(loaded) == 2
        # A NumPy array would pass many checks and fail in the first step.
        if not is_pair or not all(isinstance(part, Tensor) for part in loaded):
            raise UserError(
                f"{where} must return two tensors, the inputs and the targets"
            )
        inputs, target = loaded
        if len(inputs) != len(target):
            raise UserError(f"{where}: {len(inputs)} inputs, but {len(target)} targets")
        if not inputs.is_floating_point():
            raise UserError(
                f"{where}: inputs are {inputs.dtype}, which networks do not read; convert and scale "
                "them, for example with inputs.float() / 255"
            )
        if not bool(inputs.isfinite().all()):
            raise UserError(
                f"{where}: inputs hold values that are infinite or not numbers"
            )
        if isinstance(self.task, Classification):
            _check_labels(where, target)

    def source(self, stage: str) -> TableSource:
        """The samples of "train", "validation" or "test"."""
        if stage not in self._sources:
            for name in STAGES:
                self._sources[name] = self._make_source(name)
        return self._sources[stage]

    def _make_source(self, stage: str) -> TableSource:
        if stage == "test":
            inputs, target = self._samples("test")
            return TableSource(inputs, target, torch.arange(len(target)), "test")
        # Validation samples are further rows of the training split.
        train_inputs, train_target = self._samples("train")
        inputs, target = self._samples("validation")
        num_train = len(train_target)
        rows = torch.arange(num_train + len(target))
        own_rows = rows[:num_train] if stage == "train" else rows[num_train:]
        all_inputs = torch.cat([train_inputs, inputs])
        all_targets = torch.cat([train_target, target])
        return TableSource(all_inputs, all_targets, own_rows, "train")

    # -- description ------------------------------------------------------------------------------

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes or values."""
        _, target = self._samples("train")
        if not isinstance(self.task, Classification):
            count = target.shape[1] if target.ndim > 1 else 1
        else:
            count = int(target.max()) + 1
        if not self._class_names:
            return tuple(str(number) for number in range(count))
        if len(self._class_names) < count:
            raise UserError(
                f"data.classes has {len(self._class_names)} names, the targets have {count} classes"
            )
        return self._class_names

    @property
    def spec(self) -> Spec:
        """The tensors as the network sees them, and the sizes of the splits."""
        inputs, target = self._samples("train")
        classes = tuple(self.classes)
        for stage in STAGES:
            own_inputs, own_target = self._samples(stage)
            if own_inputs.shape[1:] != inputs.shape[1:]:
                raise UserError(
                    f"data: {stage} inputs have the shape {list(own_inputs.shape[1:])}, training "
                    f"inputs {list(inputs.shape[1:])}"
                )
            is_classes = isinstance(self.task, Classification) and len(own_target) > 0
            if is_classes and int(own_target.max()) >= len(classes):
                raise UserError(
                    f"data: {stage} has the class {int(own_target.max())}, which training lacks "
                    f"(it has {len(classes)}); give data.classes"
                )
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=tuple(inputs.shape[1:]),
            num_classes=len(classes),
            classes=classes,
            samples=self._samples_per_stage(),
            source_samples=len(self.source("train").target),
            target_shape=tuple(target.shape[1:]),
        )

    def fingerprint(self) -> dict[str, object]:
        """What decides a teacher's inputs: the samples and the classes."""
        samples = {}
        for stage in STAGES:
            samples[stage] = checksum(*self._samples(stage))
        return {"data": self.name, "samples": samples, "classes": list(self.classes)}


def _check_labels(where: str, target: Tensor) -> None:
    """Refuse targets that are no class ids.

    Raises:
        UserError: in one line.
    """
    if target.ndim != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise UserError(
            f"{where}: targets must be one integer class per sample, got {target.dtype} of shape "
            f"{list(target.shape)}; give another task for other targets"
        )
    labels = target[target != UNLABELLED]
    if len(labels) > 0 and int(labels.min()) < 0:
        raise UserError(
            f"{where}: the class {int(labels.min())} is negative; classes count from 0, and "
            f"{UNLABELLED} marks a sample without a label"
        )
