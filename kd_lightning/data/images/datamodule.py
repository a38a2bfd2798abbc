"""Images in memory as uint8, served in whole batches: the base of the image datamodules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.datamodule import ServedDataModule
from kd_lightning.data.files import checksum
from kd_lightning.data.images.augment import Augmentation, Mixing
from kd_lightning.data.images.source import Images, ImageSource
from kd_lightning.data.subsets import check_classes, check_fraction, stratified_rank
from kd_lightning.errors import UserError
from kd_lightning.randomness import run_seed
from kd_lightning.types import UNLABELLED


class ImageDataModule(ServedDataModule):
    """Base of the datamodules whose images lie in memory.

    A subclass sets `name`, `classes`, `mean` and `std`, on the class or before it calls this constructor, and answers
    `load(split)` for the source splits "train" and "test".

    Args:
        batch_size: samples a training batch, on each device.
        eval_batch_size: samples a batch in validation, test and prediction.
        validation: fraction of the training set held out for validation, stratified; 0: none, for a final run on all data.
        augment: applied to training samples in this order; one that mixes samples comes last.
        views: number of different augmentation draws; epoch e trains on view `e mod views`. `None`: a new one every epoch.
        keep_classes: train on these class ids alone (validation and test keep all).
        drop_classes: leave these class ids out of training.
        fraction: of the training samples kept, stratified.
        parts: cut the training samples into this many disjoint, stratified parts ...
        part: ... and train on this one (from 0): what one part's teacher saw, another part's student never does.
        labels: fraction of the training samples that keep their label; the others are served unlabelled (-100).
        channels: repeat grey images to this many channels, for networks made for colour.
        split_seed: of the validation split and the subsets; the same for all seeds of a run.
        augmentation_seed: of the augmentation; `None`: the run's seed. Fix it where one cache serves several seeds.
        resident: keep the samples on the accelerator, where there is one.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        validation: float = 0.1,
        augment: list[Augmentation] | None = None,
        views: int | None = None,
        keep_classes: list[int] | None = None,
        drop_classes: list[int] | None = None,
        fraction: float = 1.0,
        parts: int = 1,
        part: int = 0,
        labels: float = 1.0,
        channels: int | None = None,
        split_seed: int = 0,
        augmentation_seed: int | None = None,
        resident: bool = True,
    ) -> None:
        super().__init__()
        check_fraction("data.fraction", fraction)
        check_fraction("data.labels", labels, zero=True)
        if not 0 <= validation < 1:
            raise UserError(
                f"data.validation must be a fraction in [0, 1), got {validation}; 0 holds nothing out"
            )
        if batch_size < 1 or eval_batch_size < 1:
            raise UserError("data.batch_size and data.eval_batch_size must be at least 1")
        if not 0 <= part < parts:
            raise UserError(f"data.part must be in 0 to data.parts - 1 = {parts - 1}, got {part}")
        if views is not None and views < 1:
            raise UserError(
                f"data.views must be at least 1, got {views}; leave it out for a new view every epoch"
            )
        if channels is not None and (
            channels < 1 or (channels != len(self.mean) and len(self.mean) != 1)
        ):
            raise UserError(
                f"data.channels: images of {len(self.mean)} channels cannot be repeated to {channels}"
            )
        for early in (a for a in (augment or [])[:-1] if isinstance(a, Mixing)):
            raise UserError(
                f"data.augment: {type(early).__name__} mixes samples that are augmented already; let it come last"
            )
        check_classes("data.keep_classes", keep_classes or [], len(self.classes))
        check_classes("data.drop_classes", drop_classes or [], len(self.classes))
        self.batch_size, self.eval_batch_size, self.validation = (
            batch_size,
            eval_batch_size,
            validation,
        )
        self.augment, self.views = list(augment or []), views
        self.keep_classes, self.drop_classes = keep_classes, drop_classes
        self.fraction, self.parts, self.part, self.labels = fraction, parts, part, labels
        self.channels = channels or len(self.mean)
        self.split_seed, self.resident = split_seed, resident
        self.augmentation_seed = run_seed() if augmentation_seed is None else augmentation_seed
        self._raw: dict[str, Images] = {}
        self._sources: dict[str, ImageSource] = {}

    def load(self, split: str) -> Images:
        """All samples of a source split, "train" or "test"; raises UserError where they cannot be had."""
        raise NotImplementedError

    def raw(self, split: str) -> Images:
        if split not in self._raw:
            self._raw[split] = self.load(split)
        return self._raw[split]

    def _train_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that are trained on, rows whose label is withheld, and rows held out for validation."""
        target = self.raw("train").target
        index = torch.arange(len(target))
        held_out = stratified_rank(target, index, self.split_seed, "validation") < self.validation
        keep = ~held_out
        if self.parts > 1:
            rank = stratified_rank(target, index, self.split_seed, "part")
            keep &= (rank * self.parts).long() == self.part
        if self.keep_classes is not None:
            keep &= torch.isin(target, torch.tensor(self.keep_classes))
        if self.drop_classes is not None:
            keep &= ~torch.isin(target, torch.tensor(self.drop_classes))
        rows = index[keep]
        # One rank serves both: the labelled tenth of a set is the same samples as a tenth of the set.
        rank = stratified_rank(target[rows], rows, self.split_seed, "fraction")
        if not bool((rank < self.fraction).any()):
            raise UserError(
                "data: no training sample is left after keep_classes, drop_classes, part and fraction"
            )
        unlabelled = rows[rank >= self.fraction * self.labels]
        return rows[rank < self.fraction], unlabelled, index[held_out]

    def _source(
        self, split: str, rows: Tensor, target: Tensor, augment: list[Augmentation]
    ) -> ImageSource:
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        images = self.raw(split).images
        mixing = next((a for a in augment if isinstance(a, Mixing)), None)
        alone = [a for a in augment if a is not mixing]
        return ImageSource(
            images,
            target,
            rows,
            split,
            mean,
            std,
            alone,
            self.augmentation_seed,
            self.channels,
            mixing,
        )

    def source(self, stage: str) -> ImageSource:
        """The samples of "train", "validation" or "test", as they are trained on or evaluated."""
        if stage not in self._sources:
            if stage == "test":
                target = self.raw("test").target
                self._sources[stage] = self._source("test", torch.arange(len(target)), target, [])
            else:
                target = self.raw("train").target
                rows, unlabelled, held_out = self._train_rows()
                self._sources["validation"] = self._source("train", held_out, target, [])
                if self.labels < 1:
                    target = target.clone()
                    target[unlabelled] = UNLABELLED
                self._sources["train"] = self._source("train", rows, target, self.augment)
        return self._sources[stage]

    @property
    def spec(self) -> dict[str, Any]:
        """What networks, teachers and checkpoints need to know of the data, in builtins."""
        height, width = self.raw("train").images.shape[-2:]
        return {
            "data": self.name,
            "input_shape": [self.channels, height, width],
            "num_classes": len(self.classes),
            "classes": list(self.classes),
            "samples": {
                stage: len(self.source(stage)) for stage in ("train", "validation", "test")
            },
            "source_samples": len(self.raw("train").target),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def fingerprint(self) -> dict[str, Any]:
        """What decides the inputs of a teacher: the samples, their normalization and their augmentation."""
        # Whom a sample is mixed with depends on which rows take part; nothing else does.
        mixing = any(isinstance(augment, Mixing) for augment in self.augment)
        return {
            "data": self.name,
            "samples": {
                s: checksum(self.raw(s).images, self.raw(s).target) for s in ("train", "test")
            },
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "augment": [a.fingerprint() for a in self.augment],
            "augmentation_seed": self.augmentation_seed if self.augment else None,
            **({"rows": checksum(self.source("train").rows)} if mixing else {}),
        }
