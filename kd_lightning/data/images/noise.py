"""Noise to train on, real images to evaluate on: the data of data-free distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.files import checksum
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.randomness import run_seed, uniform
from kd_lightning.spec import Spec
from kd_lightning.types import UNLABELLED, Batch


@dataclass
class NoiseSource(Source):
    """Standard normal vectors, a function of seed, view and row.

    Attributes:
        samples: number of rows.
        latent: entries of a vector.
        seed: of the noise.
        joint_batch_size: rows of a batch of all processes together.
        repeat: so many batches in a row show the same noise.
    """

    samples: int
    latent: int
    seed: int
    joint_batch_size: int
    repeat: int = 1
    split: str = "train"
    rows: Tensor = field(init=False)
    target: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows = torch.arange(self.samples)
        # Losses on labels leave out rows without a label.
        self.target = torch.full((self.samples,), UNLABELLED)

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Noise `(B, latent)` without labels; `index` numbers the vectors.

        Args:
            rows: int64 `(B,)`.
            view: which draw: the epoch.
        """
        # `repeat` consecutive batches show the same vectors.
        batch_number = rows // self.joint_batch_size
        position = rows % self.joint_batch_size
        index = batch_number // self.repeat * self.joint_batch_size + position
        cells = index[:, None] * self.latent + torch.arange(self.latent)
        # The transform of Box and Muller 1958; 1 - u is never 0.
        radius = (-2 * (1 - uniform(cells, self.seed, "radius", view)).log()).sqrt()
        angle = 2 * math.pi * uniform(cells, self.seed, "angle", view)
        return Batch(
            inputs=radius * angle.cos(),
            target=self.target[rows],
            index=index,
            view=view,
            split=self.split,
        )

    @property
    def sample_bytes(self) -> int:
        return 4 * self.latent


class NoiseDataModule(DataModule):
    """Trains on noise vectors, which a generator turns into images; tests on real images.

    The training images are never read: shapes and normalization come from the test split. Without
    `validation` nothing is held out of the training split either.

    Args:
        data: the real images, for the test and for validation.
        samples: noise vectors per epoch.
        batch_size: noise vectors per batch, on each device.
        latent: entries of a noise vector; `model.generator.latent` of the generator.
        repeat: so many batches in a row show the same noise, as in Micaelli and Storkey 2019.
        validation: validate on the samples that `data` holds out. They usually lie in the file of
            the training split, which is then read.

    Raises:
        UserError: for a size below 1, or data that are no images in memory.
    """

    shuffled = False

    def __init__(
        self,
        data: pl.LightningDataModule,
        samples: int = 12800,
        batch_size: int = 128,
        latent: int = 100,
        repeat: int = 1,
        validation: bool = False,
    ) -> None:
        super().__init__()
        if min(samples, batch_size, latent, repeat) < 1:
            raise UserError(
                "data.samples, data.batch_size, data.latent and data.repeat must be at least 1, got "
                f"{samples}, {batch_size}, {latent} and {repeat}"
            )
        # YAML allows any datamodule here.
        if not isinstance(data, ImageDataModule):
            raise UserError(
                f"data.data: a generator makes images, but {type(data).__name__} is no "
                "ImageDataModule"
            )
        self.data = data
        self.task = data.task
        self.samples = samples
        self.batch_size = batch_size
        self.eval_batch_size = data.eval_batch_size
        self.resident = data.resident
        self.latent = latent
        self.repeat = repeat
        self.validation = validation
        self.seed = run_seed()

    @property
    def augmented(self) -> bool:
        """Each epoch shows another view: new noise."""
        return True

    def source(self, stage: str) -> Source:
        """Noise for "train"; real images for "test" and, if asked for, "validation"."""
        if stage == "test" or (stage == "validation" and self.validation):
            return self.data.source(stage)
        _, world_size = self.rank_and_world_size
        return NoiseSource(
            samples=self.samples if stage == "train" else 0,
            latent=self.latent,
            seed=self.seed,
            joint_batch_size=self.batch_size * world_size,
            repeat=self.repeat,
        )

    @property
    def spec(self) -> Spec:
        return replace(
            self.data.spec_of_split("test"),
            samples=self._samples_per_stage(),
            source_samples=self.samples,
        )

    def fingerprint(self) -> dict[str, object]:
        """What decides the inputs: the noise, and the test images."""
        raw = self.data.raw("test")
        return {
            "data": self.data.name,
            "samples": {"test": checksum(raw.images, raw.target)},
            "noise": [self.samples, self.batch_size, self.latent, self.repeat],
            "noise_seed": self.seed,
            "mean": list(self.data.mean),
            "std": list(self.data.std),
        }

    def images_for_display(self, index: Tensor) -> Tensor | None:
        return self.data.images_for_display(index)
