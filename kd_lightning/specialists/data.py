"""What a specialist trains on: some classes of a data set, and all others as one (Hinton et al. 2015, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.data.datamodule import ServedDataModule
from kd_lightning.data.images.augment import Augmentation
from kd_lightning.errors import UserError
from kd_lightning.networks import build_network
from kd_lightning.randomness import permutation, run_seed
from kd_lightning.spec import check_spec
from kd_lightning.specialists.clusters import confusable_classes
from kd_lightning.specialists.weights import specialist_weights
from kd_lightning.types import CLEAN, Batch, Inputs
from kd_lightning.weights import KEY, load_weights, network_weights, read_file, sha256_of


def _relabelled(target: Tensor, relabel: Tensor) -> Tensor:
    """Targets among the specialist's classes; what is unlabelled stays so."""
    return torch.where(target < 0, target, relabel.to(target.device)[target.clamp(min=0)])


@dataclass
class SpecialistSource:
    """A source whose classes are a specialist's, in training as many samples of the others as of its own.

    Attributes:
        inner: the source with all classes.
        relabel: int64 `(K,)`, a specialist's class for each class.
        own, others: positions in `inner` of the samples of its own classes and of all others; None: all samples, in order.
        seed: of the draws among the others.
        clock: whose `epoch` says which draw: the loader that serves this source.
    """

    inner: Any
    relabel: Tensor
    own: Tensor | None = None
    others: Tensor | None = None
    seed: int = 0
    clock: Any = field(default_factory=lambda: SimpleNamespace(epoch=0), repr=False)
    _drawn: tuple[int, Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.inner) if self.own is None else 2 * len(self.own)

    @property
    def positions(self) -> Tensor:
        """Of this epoch's samples in `inner`: its own, and as many others, drawn without replacement as far as they go."""
        if self.own is None or self.others is None:
            return torch.arange(len(self.inner))
        epoch = int(self.clock.epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            order = permutation(len(self.others), self.seed, epoch, "others")
            drawn = self.others[order[torch.arange(len(self.own)) % len(order)]]
            self._drawn = (epoch, torch.cat([self.own, drawn]))
        return self._drawn[1]

    @property
    def rows(self) -> Tensor:
        """This epoch's rows of the source split."""
        rows: Tensor = self.inner.rows
        return rows[self.positions.to(rows.device)]

    @property
    def target(self) -> Tensor:
        """Of the whole source split."""
        return _relabelled(self.inner.target, self.relabel)

    @property
    def split(self) -> str:
        return str(self.inner.split)

    def lengths(self, view: int) -> Tensor:
        """Of sources of texts: the tokens of each sample."""
        lengths: Tensor = self.inner.lengths(view)
        return lengths[self.positions]

    def batch(self, rows: Tensor, view: int) -> Batch:
        batch: Batch = self.inner.batch(self.positions[rows.cpu()], view)
        partner = None if batch.partner is None else _relabelled(batch.partner, self.relabel)
        return replace(batch, target=_relabelled(batch.target, self.relabel), partner=partner)


class SpecialistDataModule(ServedDataModule):
    """A specialist's share of any data: m classes that a generalist confuses, and one dustbin class for all the rest.

    Half of each epoch's training samples are all those of its own classes, half are drawn from the rest, as a function of
    (seed, epoch). Validation and test hold all samples. `spec["specialist"]` says what inference needs of it: the class ids,
    and the proportion by which its own classes are oversampled, whose log is to be added to the trained dustbin logit.

    Args:
        data: the data with all classes.
        generalist: checkpoint of a network that knows all classes; its predictions on the training samples, without
            augmentation, decide which classes go together.
        specialists: how many specialists there are, all of different classes.
        classes_each: classes of each, m.
        specialist: which of them this is, from 0.
        dustbin: name of the class for all the rest.
        batch_size: samples a training batch; that of `data` where left out.
        augment: of the training samples; that of `data` where left out.
        cluster_temperature, cluster_correlation, cluster_seed: see `confusable_classes`.

    Raises:
        UserError: where the generalist is not one of this data, or the specialist has no class or no sample.
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
                f"data.specialist must be in 0 to data.specialists - 1 = {specialists - 1}, got {specialist}"
            )
        inner: Any = data
        self.data = inner
        if not hasattr(data, "source") or not hasattr(data, "loader"):
            raise UserError(
                f"data.data: {type(data).__name__} serves no batches by indices; use a datamodule of kd_lightning"
            )
        if dustbin in inner.spec["classes"]:
            raise UserError(
                f"the data has a class called {dustbin!r} already; name the dustbin with --data.dustbin=NAME"
            )
        self.generalist = Path(generalist).expanduser()
        self.specialists, self.classes_each, self.specialist, self.dustbin = (
            specialists,
            classes_each,
            specialist,
            dustbin,
        )
        if batch_size is not None:
            inner.batch_size = batch_size
        if augment is not None:
            if not isinstance(getattr(inner, "augment", None), list):
                raise UserError(
                    f"data.augment: {type(inner).__name__} has no augmentation of images"
                )
            inner.augment = list(augment)
        self.batch_size, self.augment, self.views = inner.batch_size, inner.augment, inner.views
        self.cluster_temperature, self.cluster_correlation = (
            cluster_temperature,
            cluster_correlation,
        )
        self.cluster_seed = cluster_seed

    def raw(self, split: str) -> Any:
        return self.data.raw(split)

    @cached_property
    def clusters(self) -> list[list[int]]:
        """The classes of each specialist. All specialists find the same, each for itself."""
        content = read_file(self.generalist, "data.generalist")
        ours = content.get(KEY)
        if not ours or not ours.get("network"):
            raise UserError(
                f"data.generalist: {self.generalist} does not say which network it holds; give a kd checkpoint"
            )
        check_spec(f"the generalist {self.generalist}", ours["spec"], self.data.spec)
        network = build_network(ours["network"])
        load_weights(network, network_weights(content), f"data.generalist {self.generalist}")
        return confusable_classes(
            _predictions(network, self.data.source("train")),
            self.specialists,
            self.classes_each,
            self.cluster_temperature,
            self.cluster_correlation,
            self.cluster_seed,
        )

    @property
    def class_ids(self) -> list[int]:
        """The specialist's classes, ids of `data`."""
        return self.clusters[self.specialist]

    @cached_property
    def _relabel(self) -> Tensor:
        relabel = torch.full((self.data.spec["num_classes"],), len(self.class_ids))
        relabel[self.class_ids] = torch.arange(len(self.class_ids))
        return relabel

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        """Positions of the training samples of its own classes, and of all others; unlabelled ones are on neither side."""
        source = self.data.source("train")
        target = source.target[source.rows].cpu()
        own = torch.isin(target, torch.tensor(self.class_ids))
        sides = own.nonzero()[:, 0], (~own & (target >= 0)).nonzero()[:, 0]
        for side, whose in zip(sides, ("of its own classes", "of other classes"), strict=True):
            if not len(side):
                raise UserError(
                    f"specialist {self.specialist} has no labelled training sample {whose}; see data.keep_classes"
                )
        return sides

    def _wrapped(self, stage: str, inner: Any) -> SpecialistSource:
        own, others = self._sides if stage == "train" else (None, None)
        return SpecialistSource(inner, self._relabel, own, others, run_seed())

    def source(self, stage: str) -> SpecialistSource:
        """The samples of "train" (in the first epoch), "validation" or "test"."""
        return self._wrapped(stage, self.data.source(stage))

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What `data` says, of the specialist's classes and the dustbin."""
        spec = self.data.spec
        own, others = self._sides
        names = [spec["classes"][at] for at in self.class_ids]
        return {
            **spec,
            "data": f"{spec['data']}-specialist{self.specialist}",
            "num_classes": len(names) + 1,
            "classes": [*names, self.dustbin],
            "samples": {**spec["samples"], "train": 2 * len(own)},
            "specialist": {
                "number": self.specialist,
                "of": self.specialists,
                "class_ids": self.class_ids,
                # Both sides are served alike: beside the rest its classes count this many times what they count in the data.
                "oversampling": len(others) / len(own),
                "generalist": sha256_of(self.generalist),
            },
        }

    def adapt_weights(
        self,
        network: torch.nn.Module,
        weights: Mapping[str, Tensor],
        trained_on: Mapping[str, Any] | None,
        owner: str,
    ) -> dict[str, Tensor]:
        return specialist_weights(network, weights, trained_on, self.spec, owner)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the inputs of a teacher, and their classes."""
        return {**self.data.fingerprint(), "class_ids": self.class_ids}

    def loader(self, stage: str) -> Any:
        """Batches of a stage, for the process that asks, as `data` serves them."""
        self.data.trainer = self.trainer
        loader = self.data.loader(stage)
        loader.source = self._wrapped(stage, loader.source)
        loader.source.clock = loader
        return loader


def _predictions(network: torch.nn.Module, source: Any, samples: int = 1000) -> Tensor:
    """Logits `(n, K)` of all samples of a source, without augmentation; on the accelerator where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).eval()

    def run(inputs: Inputs) -> Tensor:
        said = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
        logits: Tensor = (
            said
            if isinstance(said, Tensor)
            else said["logits"]
            if isinstance(said, Mapping)
            else said.logits
        )
        return logits.cpu()

    with torch.inference_mode():
        parts = torch.arange(len(source)).split(samples)
        return torch.cat([run(source.batch(rows, CLEAN).to(device).inputs) for rows in parts])
