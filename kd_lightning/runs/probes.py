"""What a student's features are worth: linear and k-nearest-neighbor probes.

A student that learns from features alone, such as with `FeatureCosine` or `SEED`, has no trained
classifier, so that its accuracy says nothing. Two probes measure its features instead:

    trainer:
      callbacks:
        - class_path: kd_lightning.runs.probes.FeatureProbes
          init_args: {layer: penultimate}
    model:
      init_args:
        layers: {penultimate: pool}

They log `val_knn_accuracy` and `val_linear_accuracy` after each validation, and the same with
`test_` after a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.losses.base import is_labelled, is_number
from kd_lightning.randomness import permutation
from kd_lightning.training import TrainingModule, lightning_compat
from kd_lightning.types import CLEAN, Batch

QUERIES = 1000
"""Samples whose neighbors are searched at a time; the similarities of more may not fit."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of samples with labels, in memory.

    Attributes:
        features: float32 `(N, D)`.
        labels: int64 `(N,)`.
    """

    features: Tensor
    labels: Tensor


def nearest_neighbors(
    train: LabelledFeatures,
    features: Tensor,
    num_classes: int,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    r"""The class that the most similar training samples vote for.

    Wu et al. 2018 (arXiv 1805.01978), section 3.4: each of the k samples of the largest cosine $s$
    votes for its class with the weight $\exp(s / \tau)$. The defaults are those of the public code
    of DINO (Caron et al. 2021, arXiv 2104.14294).

    Args:
        train: what the votes come from.
        features: of the samples to predict, `(M, D)`.
        num_classes: K.
        neighbors: k; all training samples vote if they are fewer.
        temperature: tau.

    Returns:
        Predicted classes, int64 `(M,)`.
    """
    # Products of unit vectors are cosines.
    known = F.normalize(train.features, dim=1)
    # Fewer training samples than neighbors are all neighbors.
    count = min(neighbors, len(known))
    predicted = []
    for queries in F.normalize(features, dim=1).split(QUERIES):
        similarity, nearest = (queries @ known.T).topk(count, dim=1)
        # Relative to the nearest one, so that no weight overflows.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(queries), num_classes)
        votes.scatter_add_(1, train.labels[nearest], weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def linear_predictions(
    train: LabelledFeatures,
    features: Tensor,
    strength: float = 1.0,
) -> Tensor:
    """What a logistic regression on the training features predicts.

    Features are standardized by the mean and deviation of the training features.

    Args:
        train: what the classifier is fitted to; of at least two classes.
        features: of the samples to predict, `(M, D)`.
        strength: C, the inverse of the L2 regularization.

    Returns:
        Predicted classes, int64 `(M,)`.
    """
    # Imported here, because it takes a second and most runs have no probe.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Standardized, because the penalty treats all features alike.
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, max_iter=1000)
    )
    classifier.fit(train.features.numpy(), train.labels.numpy())
    return torch.from_numpy(classifier.predict(features.numpy()))


class FeatureProbes(pl.Callback):
    """Logs how well simple classifiers predict from the student's features.

    Both are fitted to the features of the labelled training samples, without augmentation, and
    predict those of the validation or test samples. The student does not change. Each process
    measures the whole data, so that all log the same values.

    Args:
        layer: role of the layer in `model.layers`; maps are averaged over positions.
        neighbors: k of the nearest neighbors; 0 leaves out this probe.
        temperature: of their votes.
        linear: whether to fit a logistic regression.
        strength: C of the logistic regression, the inverse of its regularization.
        max_samples: largest number of training samples; a fixed random choice of more.
        every_n_epochs: epochs between two measurements. The last epoch is measured, too.

    Raises:
        UserError: for an argument out of range; in the run, if the data has no classes, or not one
            label per sample, or the training samples are of fewer than two classes.
    """

    def __init__(
        self,
        layer: str = "penultimate",
        neighbors: int = 20,
        temperature: float = 0.07,
        linear: bool = True,
        strength: float = 1.0,
        max_samples: int = 10_000,
        every_n_epochs: int = 1,
    ) -> None:
        _check_at_least("neighbors", neighbors, 0)
        # Two samples are the fewest that can have two classes.
        _check_at_least("max_samples", max_samples, 2)
        _check_at_least("every_n_epochs", every_n_epochs, 1)
        _check_positive("temperature", temperature)
        _check_positive("strength", strength)
        if neighbors == 0 and not linear:
            raise UserError(
                "FeatureProbes measures nothing; set neighbors above 0, or linear to true"
            )
        self.layer = layer
        self.neighbors = neighbors
        self.temperature = temperature
        self.linear = linear
        self.strength = strength
        self.max_samples = max_samples
        self.every_n_epochs = every_n_epochs

    def on_validation_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Log the accuracies as `val_NAME`.

        Args:
            trainer: that validates.
            pl_module: with the student.
        """
        if trainer.sanity_checking:
            return
        # Lightning counts epochs from 0. The last one is always measured: it is the
        # result.
        epoch = trainer.current_epoch + 1
        is_last = epoch == trainer.max_epochs
        if is_last or epoch % self.every_n_epochs == 0:
            self._log(trainer, pl_module, "validation", "val")

    def on_test_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Log the accuracies as `test_NAME`.

        Args:
            trainer: that tests.
            pl_module: with the student.
        """
        self._log(trainer, pl_module, "test", "test")

    def _log(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        split: str,
        prefix: str,
    ) -> None:
        """Measure a split and log its accuracies."""
        datamodule = lightning_compat.datamodule_of(trainer)
        if not isinstance(module, TrainingModule) or not isinstance(
            datamodule, DataModule
        ):
            raise UserError(
                "FeatureProbes works with modules and datamodules of kd_lightning; remove it from "
                "trainer.callbacks"
            )
        values = self.measure(trainer, module, datamodule, split)
        module.log_dict({f"{prefix}_{name}": value for name, value in values.items()})

    def measure(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        datamodule: DataModule,
        split: str,
    ) -> dict[str, float]:
        """The accuracies on a split by the names "knn_accuracy" and "linear_accuracy".

        Args:
            trainer: knows device and precision.
            module: with the student.
            datamodule: of the run.
            split: "validation" or "test".

        Raises:
            UserError: if data or layer do not fit.
        """
        spec = datamodule.spec
        if spec.task != "classification" or spec.target_shape != ():
            raise UserError(
                f"FeatureProbes predicts one class per sample; the data {spec.data} is for "
                f"{spec.task} with targets of shape {list(spec.target_shape)}"
            )
        train = self._features(trainer, module, datamodule, "train")
        if len(train.labels.unique()) < 2:
            raise UserError(
                "FeatureProbes needs labelled training samples of at least two classes; raise "
                "data.label_fraction, or remove the callback"
            )
        held_out = self._features(trainer, module, datamodule, split)
        predicted = {}
        if self.neighbors > 0:
            predicted["knn_accuracy"] = nearest_neighbors(
                train,
                held_out.features,
                spec.num_classes,
                self.neighbors,
                self.temperature,
            )
        if self.linear:
            predicted["linear_accuracy"] = linear_predictions(
                train, held_out.features, self.strength
            )
        accuracies = {}
        for name, classes in predicted.items():
            is_correct = classes == held_out.labels
            accuracies[name] = float(is_correct.double().mean())
        return accuracies

    def _features(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        datamodule: DataModule,
        split: str,
    ) -> LabelledFeatures:
        """The features of a split's labelled samples, without augmentation."""
        learner = module.learner
        # Per layer, because a user may have frozen some of them in eval mode.
        modes = [(layer, layer.training) for layer in learner.network.modules()]
        roles = set() if learner.taps is None else set(learner.taps.modules)
        precision = trainer.precision_plugin
        features = []
        labels = []
        # `tap` closes earlier taps, and the losses' layers must stay open.
        learner.tap({*roles, self.layer})
        learner.network.eval()
        try:
            for batch in self._batches(datamodule, split):
                moved: Batch = trainer.strategy.batch_to_device(batch)
                moved = precision.convert_input(moved)
                with torch.no_grad(), precision.val_step_context():
                    output = learner(moved)
                feature = _pooled(output.features[self.layer], self.layer)
                features.append(feature.float().cpu())
                labels.append(batch.target)
        finally:
            # The losses need their layers again.
            learner.tap(roles)
            for layer, is_training in modes:
                layer.training = is_training
        joined = torch.cat(labels)
        known = is_labelled(joined)
        return LabelledFeatures(torch.cat(features)[known], joined[known])

    def _batches(self, datamodule: DataModule, split: str) -> Iterator[Batch]:
        """The samples of a split, of the training split at most `max_samples`, in batches."""
        source: Source = datamodule.source(split)
        rows = torch.arange(len(source))
        if split == "train" and len(rows) > self.max_samples:
            chosen = permutation(len(rows), "probes")[: self.max_samples]
            # Sorted, because files are read faster in their own order.
            rows = chosen.sort().values
        for some in rows.split(datamodule.batch_size):
            yield source.batch(some, CLEAN)


def _check_at_least(name: str, value: int, least: int) -> None:
    """Refuse an argument that is not a whole number of at least `least`."""
    # YAML's `true` is an instance of int, too.
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(
            f"FeatureProbes: {name} must be a whole number of at least {least}, got "
            f"{value}"
        )


def _check_positive(name: str, number: float) -> None:
    """Refuse an argument that is not a finite number greater than 0."""
    if not is_number(number) or number <= 0:
        raise UserError(
            f"FeatureProbes: {name} must be a finite number greater than 0, got {number}"
        )


def _pooled(feature: Tensor, role: str) -> Tensor:
    """`(B, D)` of vectors, of maps `(B, D, H, W)` or of tokens `(B, L, D)`."""
    if feature.ndim == 4:
        return feature.mean((2, 3))
    if feature.ndim == 3:
        return feature.mean(1)
    if feature.ndim != 2:
        raise UserError(
            f"FeatureProbes reads vectors, maps or tokens; the layer {role!r} gives "
            f"{list(feature.shape[1:])} per sample"
        )
    return feature
