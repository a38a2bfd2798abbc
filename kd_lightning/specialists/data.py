"""What a specialist trains on: some classes of a data set, and all others as one class.

Hinton et al. 2015, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from kd_lightning.data import ImageDataModule
from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.images.augment import Augmentation
from kd_lightning.data.loader import BatchLoader
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.features import run_network
from kd_lightning.networks import build_network
from kd_lightning.randomness import run_seed
from kd_lightning.spec import Spec, SpecialistInfo, check_spec
from kd_lightning.specialists.clusters import confusable_classes
from kd_lightning.specialists.source import SpecialistSource
from kd_lightning.specialists.weights import specialist_weights
from kd_lightning.types import CLEAN
from kd_lightning.weights import (
    KEY,
    load_weights,
    network_weights,
    read_file,
    sha256_of,
)


class SpecialistDataModule(DataModule):
    """A specialist's share of any data: m classes that a generalist confuses, and a dustbin class.

    Half of each epoch's training samples are all those of its own classes, the other half are drawn
    from the rest. Validation and test hold all samples. `spec.specialist` stores the class ids and
    how much its own classes are oversampled: the log of that factor is added to the dustbin's logit
    in inference.

    Args:
        data: the data with all classes.
        generalist: checkpoint of a network that knows all classes. Its predictions on the training
            samples, without augmentation, decide which classes go together.
        specialists: how many specialists there are; each has other classes.
        classes_each: classes of each, m.
        specialist: which of them this is, from 0.
        dustbin: name of the class for all other classes.
        batch_size: samples per training batch; that of `data` if left out.
        augment: of the training samples; that of `data` if left out.
        cluster_temperature, cluster_correlation, cluster_seed: see `confusable_classes`.

    Raises:
        UserError: if the generalist was trained on other data, or if the specialist has no class or
            no sample.
    """

    def __init__(
        self,
        data: pl.LightningDataModule,
        generalist: str,
        specialists: int = 10,
        classes_each: int = 40,
        specialist: int = 0,
        dustbin: str = "other",
        batch_size: int | None = None,
        augment: list[Augmentation] | None = None,
        cluster_temperature: float = 4.0,
        cluster_correlation: bool = True,
        cluster_seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= specialist < specialists:
            raise UserError(
                f"data.specialist must be in 0 to data.specialists - 1 = {specialists - 1}, "
                f"got {specialist}"
            )
        # YAML allows any datamodule here; only ours can serve a selection of samples.
        if not isinstance(data, DataModule):
            raise UserError(
                f"data.data: {type(data).__name__} serves no batches by indices; use a datamodule "
                "of kd_lightning"
            )
        if dustbin in data.spec.classes:
            raise UserError(
                f"the data already has a class called {dustbin!r}; name the dustbin with "
                "--data.dustbin=NAME"
            )
        self.data = data
        self.task = data.task
        self.generalist = Path(generalist).expanduser()
        self.specialists = specialists
        self.classes_each = classes_each
        self.specialist = specialist
        self.dustbin = dustbin
        if batch_size is not None:
            data.batch_size = batch_size
        if augment is not None:
            if not isinstance(data, ImageDataModule):
                raise UserError(
                    f"data.augment: {type(data).__name__} has no augmentation of images"
                )
            data.augment = list(augment)
        # `data` builds the loaders, so its values are the ones in force.
        self.batch_size = data.batch_size
        self.eval_batch_size = data.eval_batch_size
        self.views = data.views
        self.cluster_temperature = cluster_temperature
        self.cluster_correlation = cluster_correlation
        self.cluster_seed = cluster_seed

    @property
    def augmented(self) -> bool:
        """Whether the training samples are augmented."""
        return self.data.augmented

    def images_for_display(self, index: Tensor) -> Tensor | None:
        """Images of `data`, as its own method returns them; `None` if its samples are not images.

        Args:
            index: int64 `(n,)`, rows of the source split.
        """
        return self.data.images_for_display(index)

    def texts_for_display(self, index: Tensor) -> Sequence[str] | None:
        """Texts of `data`, as its own method returns them; `None` if its samples are not texts.

        Args:
            index: int64 `(n,)`, rows of the source split.
        """
        return self.data.texts_for_display(index)

    @cached_property
    def clusters(self) -> list[list[int]]:
        """The classes of each specialist. Every specialist computes the same ones."""
        content = read_file(self.generalist, "data.generalist")
        described = content.get(KEY)
        if not described or not described.get("network"):
            raise UserError(
                f"data.generalist: {self.generalist} does not contain a description of its "
                "network; give a kd checkpoint"
            )
        trained_on = Spec.from_dict(described["spec"])
        check_spec(f"the generalist {self.generalist}", trained_on, self.data.spec)
        network = build_network(described["network"])
        load_weights(
            network, network_weights(content), f"data.generalist {self.generalist}"
        )
        # The clean training samples: held-out ones must not decide what specialists learn.
        logits = _predictions(network, self.data.source("train"))
        return confusable_classes(
            logits,
            self.specialists,
            self.classes_each,
            self.cluster_temperature,
            self.cluster_correlation,
            self.cluster_seed,
        )

    @property
    def class_ids(self) -> list[int]:
        """The specialist's classes, as class ids of `data`."""
        return self.clusters[self.specialist]

    @cached_property
    def _new_class(self) -> Tensor:
        """The specialist's class for each class of `data`, int64 `(K,)`; the dustbin is last."""
        dustbin = len(self.class_ids)
        # Every class starts in the dustbin; the specialist's own classes leave it.
        new_class = torch.full((self.data.spec.num_classes,), dustbin)
        new_class[self.class_ids] = torch.arange(dustbin)
        return new_class

    @cached_property
    def _own_and_others(self) -> tuple[Tensor, Tensor]:
        """Positions of the training samples of its own classes, and of all others.

        Unlabelled samples belong to neither.
        """
        source = self.data.source("train")
        target = source.target[source.rows].cpu()
        class_ids = torch.tensor(self.class_ids)
        is_own = torch.isin(target, class_ids)
        own = is_own.nonzero()[:, 0]
        is_other = ~is_own & (target >= 0)
        others = is_other.nonzero()[:, 0]
        for positions, which in (
            (own, "of its own classes"),
            (others, "of other classes"),
        ):
            if len(positions) == 0:
                raise UserError(
                    f"specialist {self.specialist} has no labelled training sample {which}; see "
                    "data.keep_classes"
                )
        return own, others

    def _wrapped(self, stage: str, inner: Source) -> SpecialistSource:
        """The specialist's view of a stage's source; only training selects samples."""
        own, others = self._own_and_others if stage == "train" else (None, None)
        return SpecialistSource(inner, self._new_class, own, others, run_seed())

    def source(self, stage: str) -> SpecialistSource:
        """The samples of "train" (in the first epoch), "validation" or "test"."""
        return self._wrapped(stage, self.data.source(stage))

    @cached_property
    def spec(self) -> Spec:
        """The spec of `data`, with the specialist's classes and the dustbin."""
        spec = self.data.spec
        own, others = self._own_and_others
        names = [spec.classes[class_id] for class_id in self.class_ids]
        specialist = SpecialistInfo(
            number=self.specialist,
            of=self.specialists,
            class_ids=self.class_ids,
            # Both halves have the same size, so each of its own samples counts this many times
            # as much as it does in the data.
            oversampling=len(others) / len(own),
            generalist=sha256_of(self.generalist),
        )
        return replace(
            spec,
            data=f"{spec.data}-specialist{self.specialist}",
            num_classes=len(names) + 1,
            classes=(*names, self.dustbin),
            samples={**spec.samples, "train": 2 * len(own)},
            specialist=specialist,
        )

    def adapt_weights(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        trained_on: Spec | None,
        owner: str,
    ) -> dict[str, Tensor]:
        """A generalist's weights with the head cut to the specialist's classes.

        See `specialist_weights` for arguments and errors.
        """
        return specialist_weights(network, weights, trained_on, self.spec, owner)

    def fingerprint(self) -> dict[str, object]:
        """What decides the inputs of a teacher, and their classes."""
        return {**self.data.fingerprint(), "class_ids": self.class_ids}

    def loader(self, stage: str) -> BatchLoader:
        """The batches of a stage for this process, as `data` serves them."""
        # Lightning attaches the trainer to the outer datamodule only; `data` needs it to know the
        # processes and the device.
        self.data.trainer = self.trainer
        loader = self.data.loader(stage)
        if loader.weights is not None:
            raise UserError(
                "data.balanced: a specialist has a draw of its own; set it to false"
            )
        loader.source = self._wrapped(stage, loader.source)
        loader.join = self.joins.get(stage)
        return loader


def _predictions(network: nn.Module, source: Source, batch_size: int = 1000) -> Tensor:
    """Logits `(n, K)` of all samples of a source, without augmentation."""
    # Lightning has not placed anything on a device yet: the number of classes is still unknown.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).eval()
    logits = []
    with torch.inference_mode():
        for rows in torch.arange(len(source)).split(batch_size):
            batch = source.batch(rows, CLEAN).to(device)
            output = run_network(network, batch.inputs)
            logits.append(output.logits.cpu())
    return torch.cat(logits)
