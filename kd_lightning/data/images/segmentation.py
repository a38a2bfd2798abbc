"""Images with one label per pixel, in folders or in a zip of folders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.files import checksum, data_root
from kd_lightning.data.images.augment import Augmentation, Mixing
from kd_lightning.data.images.checks import checked_normalization
from kd_lightning.data.images.decoding import ChannelStatistics
from kd_lightning.data.images.listing import find_validation_folder
from kd_lightning.data.images.masks import WITHHELD, MaskCoding, PixelCode
from kd_lightning.data.images.new_samples import ImageReader
from kd_lightning.data.images.normalization import PixelNormalization
from kd_lightning.data.images.pairs import MaskedImages, decode_pairs, list_pairs
from kd_lightning.data.images.segmentation_source import SegmentationSource
from kd_lightning.data.images.source import ImageSource
from kd_lightning.data.images.tree import Tree, open_tree
from kd_lightning.data.subsets import check_fraction, stratified_rank
from kd_lightning.errors import UserError
from kd_lightning.randomness import run_seed
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.tasks.segmentation import Segmentation


class SegmentationDataModule(DataModule):
    """Images in `SPLIT/images/` and masks of the same names in `SPLIT/masks/` of a folder or a zip.

    Everything is decoded once, into memory. Images are normalized by the mean and the standard
    deviation of the folder `train`. Geometric augmentations move image and mask alike; pixels that
    come in from outside are void.

    Args:
        path: of the folder or the zip, below the root or absolute.
        classes: for each class, by name, how masks mark its pixels: by a gray or palette value, or
            by a color `[red, green, blue]`; class 0 first.
        void: how masks mark pixels that belong to no class; nothing counts them.
        root: folder of the data sets; else `KD_DATA_ROOT`, else `./data`.
        images: folder of the images within a split.
        masks: folder of the masks within a split.
        size: resize images and masks to this `[height, width]`; needed if images differ in size.
        batch_size: images per training batch, on each device.
        eval_batch_size: images per batch in validation, test and prediction.
        validation: fraction of the training images held out for validation.
            A folder `val`, `valid` or `validation` is the validation split instead: nothing else is
            held out. The name of a folder chooses another one. 0 holds nothing out and leaves the
            folder unused.
        augment: applied to training images in this order.
        views: number of different augmentation draws; epoch e trains on view `e mod views`.
            `None`: a new one in every epoch.
        copies: how many views of each image a training batch holds.
        fraction: fraction of the training images to use.
        label_fraction: fraction of the training images that have a mask; every pixel of the others
            is served as unlabelled (-100).
        split_seed: of the validation split and the subsets; the same for all seeds of a run.
        augmentation_seed: of the augmentation; `None`: the run's seed. Fix it if one cache serves
            several seeds.
        resident: keep the samples on the accelerator if there is one and they fit. Counting the
            void pixels of a batch then waits for the device.
        prefetch: batches to make ahead of time, in a thread.
        mean, std: normalize with these, one value per channel, of pixel values in [0, 1]; by
            default those of the folder `train`.

    Raises:
        UserError: if the layout is another one, if an image has no mask of its size, if a mask
            holds an unknown pixel, or for an option out of range.
    """

    task: Task = Segmentation()
    name: str

    def __init__(
        self,
        path: str,
        classes: dict[str, PixelCode],
        void: list[PixelCode] | None = None,
        root: str | None = None,
        images: str = "images",
        masks: str = "masks",
        size: list[int] | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        validation: float | str = 0.1,
        augment: list[Augmentation] | None = None,
        views: int | None = None,
        copies: int = 1,
        fraction: float = 1.0,
        label_fraction: float = 1.0,
        split_seed: int = 0,
        augmentation_seed: int | None = None,
        resident: bool = False,
        prefetch: int = 2,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.augment = list(augment or [])
        self.classes = tuple(classes)
        self.size = size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation = validation
        self.views = views
        self.copies = copies
        self.fraction = fraction
        self.label_fraction = label_fraction
        self.split_seed = split_seed
        self.augmentation_seed = (
            run_seed() if augmentation_seed is None else augmentation_seed
        )
        self.resident = resident
        self.prefetch = prefetch
        # Before the images are decoded, which may take minutes.
        self._check_options()
        source = data_root(root) / Path(path).expanduser()
        self.name = source.name.removesuffix(".zip")
        self._samples: dict[str, MaskedImages] = {}
        self._sources: dict[str, SegmentationSource] = {}
        self._read(source, MaskCoding(classes, void or []), images, masks)
        own_mean, own_std = self._channel_statistics()
        self.mean = checked_normalization("mean", mean, own_mean, 3)
        self.std = checked_normalization("std", std, own_std, 3)

    def _check_options(self) -> None:
        check_fraction("data.fraction", self.fraction)
        check_fraction("data.label_fraction", self.label_fraction, zero=True)
        if not isinstance(self.validation, str) and not 0 <= self.validation < 1:
            raise UserError(
                "data.validation must be a fraction in [0, 1) or the name of a folder, got "
                f"{self.validation}; 0 holds nothing out"
            )
        if self.batch_size < 1 or self.eval_batch_size < 1:
            raise UserError(
                "data.batch_size and data.eval_batch_size must be at least 1"
            )
        if self.copies < 1 or self.prefetch < 0:
            raise UserError(
                "data.copies must be at least 1 and data.prefetch at least 0"
            )
        if self.views is not None and self.views < 1:
            raise UserError(
                f"data.views must be at least 1, got {self.views}; leave it out for a new view "
                "every epoch"
            )
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise UserError(
                f"data.size must be [height, width] in pixels, got {self.size}"
            )
        for augment in self.augment:
            if isinstance(augment, Mixing):
                raise UserError(
                    f"data.augment: {type(augment).__name__} mixes the labels of whole images; it "
                    "cannot mix labels of pixels"
                )
            if augment.interpolates:
                raise UserError(
                    f"data.augment: {type(augment).__name__} interpolates pixels, which masks do "
                    "not allow; use PadCrop or Flip"
                )

    def _read(self, path: Path, coding: MaskCoding, images: str, masks: str) -> None:
        """Decode both source splits, and find the rows of a validation folder."""
        tree = open_tree(path)
        train = list_pairs(tree, "train", images, masks)
        test = list_pairs(tree, "test", images, masks)
        self._first_validation_row = len(train)
        self._validation_folder = self._find_validation_folder(tree)
        if self._validation_folder is not None:
            # Rows of a validation folder follow the training rows in the same source split.
            train += list_pairs(tree, self._validation_folder, images, masks)
        # Both splits at once, because all images must have one size.
        samples = decode_pairs(tree, train + test, coding, self.size)
        first_test = len(train)
        self._samples = {
            "train": MaskedImages(
                samples.images[:first_test], samples.masks[:first_test]
            ),
            "test": MaskedImages(
                samples.images[first_test:], samples.masks[first_test:]
            ),
        }

    def _find_validation_folder(self, tree: Tree) -> str | None:
        if isinstance(self.validation, str):
            return self.validation
        if self.validation > 0:
            return find_validation_folder(tree)
        return None

    def _channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of the images in the folder `train`."""
        statistics = ChannelStatistics(channels=3)
        images = self._samples["train"].images[: self._first_validation_row]
        for chunk in images.split(64):
            statistics.update(chunk.numpy())
        mean, std = statistics.compute()
        return tuple(mean), tuple(std)

    @property
    def augmented(self) -> bool:
        """Whether training samples are augmented."""
        return bool(self.augment)

    def _rank(self, rows: Tensor, purpose: str) -> Tensor:
        """The place of each row in [0, 1), in an order that is a function of (split_seed, row)."""
        # An image has many classes, so there is nothing to stratify by.
        one_stratum = torch.zeros(len(rows), dtype=torch.int64)
        return stratified_rank(one_stratum, rows, self.split_seed, purpose)

    def _train_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows to train on, rows among them whose mask is withheld, and rows held out."""
        index = torch.arange(len(self._samples["train"].masks))
        if self._validation_folder is not None:
            is_held_out = index >= self._first_validation_row
        else:
            is_held_out = self._rank(index, "validation") < float(self.validation)
        rows = index[~is_held_out]
        # One rank serves both fractions: the labelled tenth of a set is the same images as a tenth
        # of the set.
        rank = self._rank(rows, "fraction")
        if not bool((rank < self.fraction).any()):
            raise UserError(
                "data: no training image is left after validation and fraction"
            )
        train = rows[rank < self.fraction]
        unlabelled = rows[rank >= self.fraction * self.label_fraction]
        return train, unlabelled, index[is_held_out]

    def _source(
        self,
        split: str,
        rows: Tensor,
        masks: Tensor,
        augment: list[Augmentation],
    ) -> SegmentationSource:
        images = ImageSource(
            images=self._samples[split].images,
            # Not read: the labels come from the masks.
            target=torch.zeros(len(masks), dtype=torch.int64),
            rows=rows,
            split=split,
            mean=torch.tensor(self.mean),
            std=torch.tensor(self.std),
            augment=augment,
            seed=self.augmentation_seed,
            channels=3,
        )
        return SegmentationSource(images, masks)

    def source(self, stage: str) -> SegmentationSource:
        """The samples of "train", "validation" or "test", as they are trained on or evaluated."""
        if stage not in self._sources:
            if stage == "test":
                masks = self._samples["test"].masks
                rows = torch.arange(len(masks))
                self._sources[stage] = self._source("test", rows, masks, [])
            else:
                self._make_training_sources()
        return self._sources[stage]

    def _make_training_sources(self) -> None:
        masks = self._samples["train"].masks
        rows, unlabelled, held_out = self._train_rows()
        self._sources["validation"] = self._source("train", held_out, masks, [])
        if self.label_fraction < 1:
            # Which pixels are void is part of the mask, and so withheld with it.
            masks = masks.clone()
            masks[unlabelled] = WITHHELD
        self._sources["train"] = self._source("train", rows, masks, self.augment)

    def preprocessing(self) -> PixelNormalization:
        """Normalizes uint8 pixels."""
        spec = self.spec
        assert spec.mean is not None
        assert spec.std is not None
        return PixelNormalization(spec.mean, spec.std, len(spec.mean))

    def raw_inputs(self, stage: str, rows: Tensor) -> Tensor:
        """The pixels of samples, uint8 `(B, C, H, W)`."""
        images = self.source(stage).images
        return images.images[images.rows[rows]]

    def input_reader(self) -> ImageReader:
        """Decodes images, and resizes them as the training images."""
        height, width = self._samples["train"].images.shape[-2:]
        return ImageReader(3, height, width, stretch=self.size is not None)

    def images_for_display(self, index: Tensor) -> Tensor | None:
        """The raw test images, uint8 `(N, C, H, W)`, of rows `(N,)`."""
        return self._samples["test"].images[index]

    @property
    def spec(self) -> Spec:
        """The images as the network sees them, and the sizes of the splits."""
        masks = self._samples["train"].masks
        height, width = masks.shape[1:]
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=(3, height, width),
            num_classes=len(self.classes),
            classes=self.classes,
            samples=self._samples_per_stage(),
            source_samples=len(masks),
            target_shape=(height, width),
            mean=self.mean,
            std=self.std,
        )

    def fingerprint(self) -> dict[str, object]:
        """What decides a teacher's inputs: the samples, normalization and augmentation."""
        samples = {}
        for split, decoded in self._samples.items():
            # The decoded pixels, so that the path and the kind of file do not count.
            samples[split] = checksum(decoded.images, decoded.masks)
        augment = [augmentation.fingerprint() for augmentation in self.augment]
        return {
            "data": self.name,
            "samples": samples,
            "mean": list(self.mean),
            "std": list(self.std),
            "augment": augment,
            "augmentation_seed": self.augmentation_seed if self.augment else None,
        }
