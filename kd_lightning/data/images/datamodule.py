"""The base of the image datamodules: images in memory, splits and subsets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.files import checksum
from kd_lightning.data.images.augment import Augmentation, Mixing
from kd_lightning.data.images.checks import (
    check_batches,
    check_channels,
    check_chosen_classes,
    check_mixing_is_last,
    check_shares,
    checked_normalization,
    checked_samples,
)
from kd_lightning.data.images.new_samples import ImageReader
from kd_lightning.data.images.normalization import PixelNormalization
from kd_lightning.data.images.source import Images, ImageSource
from kd_lightning.data.subsets import stratified_rank
from kd_lightning.errors import UserError
from kd_lightning.randomness import run_seed
from kd_lightning.spec import Spec
from kd_lightning.tasks.classification import Classification
from kd_lightning.types import UNLABELLED


class ImageDataModule(DataModule):
    """Base of the datamodules whose images lie in memory.

    A subclass sets `name`, `classes`, `mean` and `std`, on the class or before it calls this
    constructor, and implements `load(split)` for the source splits "train" and "test". For several
    labels per image it also sets `task = MultilabelClassification()`, and its targets are `(N, K)`.

    Args:
        batch_size: samples per training batch, on each device.
        eval_batch_size: samples per batch in validation, test and prediction.
        validation: fraction of the training set held out for validation, stratified; 0 holds
            nothing out, for a final run on all data. If the data has a validation split of its own,
            nothing else is held out, and 0 leaves that split unused.
        augment: applied to training samples in this order; one that mixes samples comes last.
        views: number of different augmentation draws; epoch e trains on view `e mod views`.
            `None`: a new one in every epoch.
        copies: how many views of each sample a training batch holds.
        keep_classes: train on these class ids only (validation and test keep all classes).
        drop_classes: leave these class ids out of training.
        fraction: fraction of the training samples to use, stratified.
        parts: cut the training samples into this many disjoint, stratified parts ...
        part: ... and train on this one (from 0), so that a teacher and a student never see the
            same samples.
        label_fraction: fraction of the training samples that have a label; the others are served
            as unlabelled (-100).
        channels: repeat gray images to this many channels, for networks made for color.
        split_seed: of the validation split and the subsets; the same for all seeds of a run.
        augmentation_seed: of the augmentation; `None`: the run's seed. Fix it if one cache serves
            several seeds.
        resident: keep the samples on the accelerator if there is one and they fit.
        prefetch: batches to make ahead of time, in a thread.
        mean, std: normalize with these, one value per channel, of pixel values in [0, 1]; by
            default those of the data. A pretrained network expects those of its own training.
        drop_last: leave out the last training batch of an epoch if it is smaller than the others.
        balanced: draw training samples with replacement, so that all classes are equally frequent.
        task: what is predicted, such as `kd_lightning.tasks.Classification` with further metrics.

    Raises:
        UserError: for an option out of range.

    Attributes:
        first_validation_row: if the data has a validation split of its own, the rows of the source
            split "train" from this one on; `None` if it has none.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    first_validation_row: int | None = None

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        validation: float = 0.1,
        augment: list[Augmentation] | None = None,
        views: int | None = None,
        copies: int = 1,
        keep_classes: list[int] | None = None,
        drop_classes: list[int] | None = None,
        fraction: float = 1.0,
        parts: int = 1,
        part: int = 0,
        label_fraction: float = 1.0,
        channels: int | None = None,
        split_seed: int = 0,
        augmentation_seed: int | None = None,
        resident: bool = True,
        prefetch: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        drop_last: bool = False,
        balanced: bool = False,
        task: Classification | None = None,
    ) -> None:
        super().__init__()
        if task is not None:
            self.task = task
        self._check_attributes()
        self.augment = list(augment or [])
        check_shares(validation, fraction, label_fraction, parts, part)
        check_batches(batch_size, eval_batch_size, copies, prefetch, views)
        check_channels(len(self.mean), channels)
        check_mixing_is_last(self.augment)
        check_chosen_classes(
            self.task, len(self.classes), keep_classes or [], drop_classes or []
        )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation = validation
        self.views = views
        self.copies = copies
        self.keep_classes = keep_classes
        self.drop_classes = drop_classes
        self.fraction = fraction
        self.parts = parts
        self.part = part
        self.label_fraction = label_fraction
        self.image_channels = len(self.mean)
        """Of the raw images; a network may read them repeated to `channels`."""
        self.channels = channels or self.image_channels
        self.mean = checked_normalization("mean", mean, self.mean, self.channels)
        self.std = checked_normalization("std", std, self.std, self.channels)
        self.split_seed = split_seed
        self.resident = resident
        self.prefetch = prefetch
        self.drop_last = drop_last
        self.balanced = balanced
        self.augmentation_seed = (
            run_seed() if augmentation_seed is None else augmentation_seed
        )
        self._raw: dict[str, Images] = {}
        self._sources: dict[str, ImageSource] = {}

    def _check_attributes(self) -> None:
        for attribute in ("name", "classes", "mean", "std"):
            # Lightning's own class sets `name` to None.
            if getattr(self, attribute, None) is None:
                raise UserError(
                    f"{type(self).__name__} must set the class attribute `{attribute}`; an "
                    "ImageDataModule has name, classes, mean and std"
                )
        if len(self.mean) != len(self.std):
            raise UserError(
                f"{type(self).__name__}: mean and std must have one value per channel, got "
                f"{len(self.mean)} and {len(self.std)}"
            )

    @property
    def augmented(self) -> bool:
        """Whether training samples are augmented."""
        return bool(self.augment)

    def load(self, split: str) -> Images:
        """All samples of a source split, "train" or "test".

        Raises:
            UserError: if they are not available.
        """
        raise NotImplementedError

    def raw(self, split: str) -> Images:
        """All samples of a source split, loaded once and checked.

        Raises:
            UserError: if `load` returns samples of another form.
        """
        # Loading may take minutes, and the checks read every label.
        if split not in self._raw:
            self._raw[split] = checked_samples(
                self.load(split),
                split,
                self.image_channels,
                len(self.classes),
                self.task,
            )
        return self._raw[split]

    def _train_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows to train on, rows among them whose label is withheld, and rows held out."""
        target = self.raw("train").target
        strata = self.task.strata(target)
        # Strata count from 0, also if no sample has a label.
        strata = strata - strata.min()
        # Validation is taken out first, so that it is the same for every subset.
        rows, takes_part, validation = self._divided(strata)
        if self.parts > 1:
            rank = stratified_rank(strata[rows], rows, self.split_seed, "part")
            takes_part &= (rank * self.parts).long() == self.part
        if self.keep_classes is not None:
            chosen = torch.tensor(self.keep_classes)
            takes_part &= torch.isin(target[rows], chosen)
        if self.drop_classes is not None:
            dropped = torch.tensor(self.drop_classes)
            takes_part &= ~torch.isin(target[rows], dropped)
        rows = rows[takes_part]
        # One rank serves both fractions: the labelled tenth of a set is the same samples as a
        # tenth of the set.
        rank = stratified_rank(strata[rows], rows, self.split_seed, "fraction")
        if not bool((rank < self.fraction).any()):
            raise UserError(
                "data: no training sample is left after validation, keep_classes, drop_classes, "
                "part and fraction"
            )
        train = rows[rank < self.fraction]
        unlabelled = rows[rank >= self.fraction * self.label_fraction]
        return train, unlabelled, validation

    def _divided(self, strata: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Divide the source split "train" into training and validation.

        Args:
            strata: int64 `(N,)`, which samples are divided in equal shares.

        Returns:
            Rows `(n,)` that subsets for training are drawn from, whether each may be trained on,
            bool `(n,)`, and the rows to validate on.
        """
        rows = torch.arange(len(strata))
        first = self.first_validation_row
        if first is None:
            rank = stratified_rank(strata, rows, self.split_seed, "validation")
            held_out = rank < self.validation
            return rows, ~held_out, rows[held_out]
        validation = rows[first:] if self.validation > 0 else rows[:0]
        return rows[:first], torch.ones(first, dtype=torch.bool), validation

    def _source(
        self,
        split: str,
        rows: Tensor,
        target: Tensor,
        augment: list[Augmentation],
    ) -> ImageSource:
        mixing = None
        transforms = []
        for each in augment:
            if isinstance(each, Mixing):
                mixing = each
            else:
                transforms.append(each)
        return ImageSource(
            images=self.raw(split).images,
            target=target,
            rows=rows,
            split=split,
            mean=torch.tensor(self.mean),
            std=torch.tensor(self.std),
            augment=transforms,
            seed=self.augmentation_seed,
            channels=self.channels,
            mixing=mixing,
        )

    def source(self, stage: str) -> ImageSource:
        """The samples of "train", "validation" or "test", as they are trained on or evaluated."""
        if stage not in self._sources:
            if stage == "test":
                target = self.raw("test").target
                rows = torch.arange(len(target))
                self._sources[stage] = self._source("test", rows, target, [])
            else:
                self._make_training_sources()
        return self._sources[stage]

    def _make_training_sources(self) -> None:
        target = self.raw("train").target
        rows, unlabelled, held_out = self._train_rows()
        self._sources["validation"] = self._source("train", held_out, target, [])
        if self.label_fraction < 1:
            # Change a copy: validation samples share this target and keep their labels.
            target = target.clone()
            target[unlabelled] = UNLABELLED
        self._sources["train"] = self._source("train", rows, target, self.augment)

    def preprocessing(self) -> PixelNormalization:
        """Normalizes uint8 pixels."""
        return PixelNormalization(self.mean, self.std, self.channels)

    def raw_inputs(self, stage: str, rows: Tensor) -> Tensor:
        """The pixels of samples, uint8 `(B, C, H, W)`."""
        source = self.source(stage)
        return source.images[source.rows[rows]]

    def input_reader(self) -> ImageReader:
        """Decodes images of the size of the training images."""
        height, width = self.raw("train").images.shape[-2:]
        return ImageReader(self.image_channels, height, width)

    def images_for_display(self, index: Tensor) -> Tensor | None:
        """The raw test images, uint8 `(N, C, H, W)`, of rows `(N,)`."""
        return self.raw("test").images[index]

    @property
    def spec(self) -> Spec:
        """The images as the network sees them, and the sizes of the splits."""
        return replace(
            self.spec_of_split("train"),
            samples=self._samples_per_stage(),
            source_samples=len(self.raw("train").target),
        )

    def spec_of_split(self, split: str) -> Spec:
        """The spec without the numbers of samples; only one source split is read for it.

        Args:
            split: "train" or "test".
        """
        height, width = self.raw(split).images.shape[-2:]
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=(self.channels, height, width),
            num_classes=len(self.classes),
            classes=tuple(self.classes),
            mean=tuple(self.mean),
            std=tuple(self.std),
        )

    def fingerprint(self) -> dict[str, object]:
        """What decides a teacher's inputs: the samples, normalization and augmentation."""
        samples = {}
        for split in ("train", "test"):
            raw = self.raw(split)
            samples[split] = checksum(raw.images, raw.target)
        augment = [augmentation.fingerprint() for augmentation in self.augment]
        fingerprint: dict[str, object] = {
            "data": self.name,
            "samples": samples,
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "augment": augment,
            "augmentation_seed": self.augmentation_seed if self.augment else None,
        }
        if any(isinstance(augmentation, Mixing) for augmentation in self.augment):
            # The partner of a mixed sample depends on which rows take part.
            fingerprint["rows"] = checksum(self.source("train").rows)
        return fingerprint
