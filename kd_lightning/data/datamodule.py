"""The base of all datamodules: tasks, specs, sources, and which loader a stage has in each process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from kd_lightning.data.fetch import Join
from kd_lightning.data.loader import BatchLoader
from kd_lightning.data.new_samples import InputReader
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.randomness import run_seed, seed_from
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.tasks.classification import Classification
from kd_lightning.types import CLEAN, Inputs

FETCH_BYTES = 2**21
"""Small batches are fetched several at once, up to this many bytes: about a core's cache."""

RESIDENT_SHARE = 0.5
"""The largest share of a GPU's free memory that samples may take; the rest is for training."""

STAGES = ("train", "validation", "test")


class DataModule(pl.LightningDataModule, ABC):
    """Serves the samples of "train", "validation" and "test" as whole batches.

    A subclass implements `source`, `spec` and `fingerprint`. The other methods are hooks with a
    default that suits most data.

    Attributes:
        task: what is predicted.
        batch_size: samples per training batch, on each device.
        eval_batch_size: samples per batch in validation, test and prediction.
        views: number of different augmentation draws: epoch e trains on view `e mod views`.
            `None`: a new one in every epoch.
        copies: how many views of each sample a training batch holds.
        resident: keep the samples on the accelerator if there is one and they fit.
        prefetch: batches to make ahead of time, in a thread.
        drop_last: leave out the last training batch of an epoch if it is smaller than the others.
        balanced: draw training samples with replacement, so that all classes are equally frequent.
        class_pairs: let a companion of its class accompany each training sample; set by the module
            that trains, if a loss compares them. See `Batch.paired`.
        shuffled: serve training samples in a new order in every epoch.
    """

    task: Task = Classification()
    batch_size: int
    eval_batch_size: int
    views: int | None = None
    copies: int = 1
    resident: bool = False
    prefetch: int = 0
    drop_last: bool = False
    balanced: bool = False
    class_pairs: bool = False
    shuffled: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.joins: dict[str, Join] = {}
        """By stage, what adds a teacher's cached outputs to each batch; set by the module."""

    # -- to be implemented ------------------------------------------------------------------------

    @abstractmethod
    def source(self, stage: str) -> Source:
        """The samples of "train", "validation" or "test".

        Raises:
            UserError: if they are not available.
        """

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """What networks, teachers and checkpoints need to know about the data."""

    @abstractmethod
    def fingerprint(self) -> dict[str, object]:
        """What decides the inputs of a teacher, in plain values; caches and run keys compare it.

        Its entry `samples` is a checksum of the samples.
        """

    # -- hooks ------------------------------------------------------------------------------------

    @property
    def augmented(self) -> bool:
        """Whether training samples are augmented, so that there is more than the clean view."""
        return False

    def checkpoint_state(self) -> dict[str, object] | None:
        """What a checkpoint stores besides the spec, in plain values, to read data the same way."""
        return None

    def restore(self, state: Mapping[str, object], spec: Spec) -> None:
        """Read data as a checkpoint's data did.

        Args:
            state: what `checkpoint_state` returned when the checkpoint was made.
            spec: the spec of that data.

        Raises:
            UserError: if this data cannot be read that way.
        """

    def prepare_network(self, network: nn.Module) -> None:
        """Give a network that starts without `init_from` what it needs of the data, before training.

        Text datamodules pass their vocabulary to embeddings that start from word vectors.
        """

    def adapt_weights(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        trained_on: Spec | None,
        owner: str,
    ) -> dict[str, Tensor]:
        """Change weights from `init_from` before they are loaded.

        Args:
            network: the network that will load the weights.
            weights: its new tensors, by name.
            trained_on: the spec of the data that the weights were trained on, if it is known.
            owner: what an error message calls the weights.
        """
        return dict(weights)

    def write_predictions(
        self, predictions: Mapping[str, Tensor], folder: Path
    ) -> Path | None:
        """Write the outputs of `kd predict` in a form for people; returns the file, if any.

        Args:
            predictions: what the task's `predictions` returned for all samples, each `(N, ...)`.
            folder: of the run.
        """
        return None

    def preprocessing(self) -> nn.Module:
        """From samples as a deployed network receives them to what the network reads.

        Exports contain this module. By default, a network receives what it reads.
        """
        return nn.Identity()

    def raw_inputs(self, stage: str, rows: Tensor) -> Inputs:
        """Samples as `preprocessing` receives them, without augmentation.

        Args:
            stage: "train", "validation" or "test".
            rows: int64 `(B,)`, positions in the source of the stage.
        """
        return self.source(stage).batch(rows, CLEAN).inputs

    def input_reader(self) -> InputReader | None:
        """Reads samples that a user brings; `None` if they can only be given as arrays."""
        return None

    def images_for_display(self, index: Tensor) -> Tensor | None:
        """Test samples as uint8 images `(n, C, H, W)`; `None` if they are no images.

        Args:
            index: int64 `(n,)`, rows of the test split.
        """
        return None

    def texts_for_display(self, index: Tensor) -> Sequence[str] | None:
        """Test samples as texts; `None` if they are no texts.

        Args:
            index: int64 `(n,)`, rows of the test split.
        """
        return None

    def _samples_per_stage(self) -> dict[str, int]:
        """The number of samples of each stage, for the spec."""
        samples = {}
        for stage in STAGES:
            samples[stage] = len(self.source(stage))
        return samples

    # -- serving ----------------------------------------------------------------------------------

    @property
    def rank_and_world_size(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _device(self) -> torch.device:
        if self.trainer is None:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    def _placed(self, source: Source) -> Source:
        """The source, moved to the accelerator if that is asked for and it fits."""
        device = self._device()
        size = source.resident_bytes
        if not self.resident or device.type != "cuda" or size is None:
            return source
        free_bytes, _ = torch.cuda.mem_get_info(device)
        # The rest of the memory is for the networks.
        fits = size <= RESIDENT_SHARE * free_bytes
        if fits:
            return source.to(device)
        return source

    def smallest_batch(self) -> int:
        """The fewest samples of a training batch in any process."""
        samples = len(self.source("train"))
        _, world_size = self.rank_and_world_size
        rest = samples % (self.batch_size * world_size)
        if rest == 0 or self.drop_last:
            fewest = self.batch_size
        else:
            # A process without a sample trains on a placeholder of one.
            fewest = max(1, rest // world_size)
        shown = 2 if self.class_pairs else self.copies
        return fewest * shown

    def sample_weights(self) -> Tensor | None:
        """The weight of each training sample in the draw of an epoch, float64 `(n,)`.

        Raises:
            UserError: if the classes are to be balanced and the samples have no classes.
        """
        if not self.balanced:
            return None
        classes = self._classes_of(self.source("train"))
        counts = classes.bincount()
        if len(counts) < 2:
            raise UserError(
                f"data.balanced needs samples with classes; the task is {self.task.name}"
            )
        return 1.0 / counts[classes].double()

    def _classes_of(self, source: Source) -> Tensor:
        """The class of each sample of a source, int64 `(n,)`; those without a label form one."""
        rows = source.rows.to(source.target.device)
        return self.task.strata(source.target[rows].cpu())

    def check_class_pairs(self) -> None:
        """Refuse to serve pairs of one class if the samples have no classes, or several views.

        Raises:
            UserError: in one line.
        """
        if self._classes_of(self.source("train")).max() < 1:
            raise UserError(
                f"pairs of samples of one class need classes; the task is {self.task.name}"
            )
        if self.copies > 1:
            raise UserError(
                "pairs of samples of one class exclude several views of each; set data.copies=1"
            )

    @property
    def repeats_batches(self) -> bool:
        """Whether the Trainer is to overfit a few batches, which must then stay the same."""
        # Lightning attaches the Trainer's option without declaring it.
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def loader(self, stage: str) -> BatchLoader:
        """The batches of a stage, for the process that asks."""
        train = stage == "train"
        own_source = self.source(stage)
        source = self._placed(own_source)
        moved = source is not own_source
        rank, world_size = self.rank_and_world_size
        sample_bytes = source.sample_bytes
        loader = BatchLoader(
            source,
            self.batch_size if train else self.eval_batch_size,
            shuffle=train and self.shuffled,
            seed=seed_from(run_seed(), "train"),
            views=self.views if train and self.augmented else 0,
            copies=self.copies if train else 1,
            rank=rank,
            world_size=world_size,
            fetch=FETCH_BYTES // sample_bytes if sample_bytes > 0 else 0,
            prefetch=self.prefetch,
            pin=self._device().type == "cuda" and not moved,
            drop_last=train and self.drop_last,
            weights=self.sample_weights() if train else None,
            repeat=train and self.repeats_batches,
        )
        loader.join = self.joins.get(stage)
        if train:
            loader.accumulate = self._accumulated_batches
        return loader

    def _accumulated_batches(self) -> int:
        """How many training batches add up to one optimizer step."""
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> BatchLoader:
        """The batches of "train"."""
        loader = self.loader("train")
        if self.class_pairs:
            loader.classes = self._classes_of
        return loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The batches of "validation"; an empty list if it has no samples."""
        if len(self.source("validation")) == 0:
            return []
        return self.loader("validation")

    def test_dataloader(self) -> BatchLoader:
        """The batches of "test"."""
        return self.loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """The samples to predict: those of "test"."""
        return self.loader("test")
