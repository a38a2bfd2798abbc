"""Probes of features: the classifiers against plain formulas, and in runs on real digits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import FeatureCosine
from kd_lightning.runs.probes import (
    FeatureProbes,
    LabelledFeatures,
    linear_predictions,
    nearest_neighbors,
)
from kd_lightning.teachers import ModelTeacher
from tests.training.small import copied, distillation, mlp, run_fit, same, trainer

LAYERS = {"penultimate": "head:input", "map": "body"}


def drawn(rows: int, seed: int = 0) -> LabelledFeatures:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 3, generator=rng)
    return LabelledFeatures(features, torch.randint(4, (rows,), generator=rng))


def voted(train: LabelledFeatures, query: list[float], k: int, tau: float) -> int:
    """The class of the most votes, term by term."""
    similarities = []
    for known, label in zip(
        train.features.tolist(), train.labels.tolist(), strict=True
    ):
        product = sum(a * b for a, b in zip(known, query, strict=True))
        cosine = product / math.hypot(*known) / math.hypot(*query)
        similarities.append((cosine, label))
    votes = [0.0] * 4
    for cosine, label in sorted(similarities, reverse=True)[:k]:
        votes[label] += math.exp(cosine / tau)
    return votes.index(max(votes))


@pytest.mark.parametrize("neighbors", [1, 5, 30])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_neighbors_vote(neighbors: int, temperature: float) -> None:
    train = drawn(20)
    queries = drawn(30, seed=1).features
    found = nearest_neighbors(train, queries, 4, neighbors, temperature)
    expected = [voted(train, row, neighbors, temperature) for row in queries.tolist()]
    assert found.tolist() == expected


def test_neighbors_by_hand() -> None:
    # Cosines 1, 0 and 0 with classes 0, 1 and 1: at tau = 1 the votes are e and 1 + 1.
    directions = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    train = LabelledFeatures(directions, torch.tensor([0, 1, 1]))
    query = torch.tensor([[5.0, 0.0]])
    assert nearest_neighbors(train, query, 2, 3, 1.0).tolist() == [0]
    # At tau = 2 they are 1.65 and 2.
    assert nearest_neighbors(train, query, 2, 3, 2.0).tolist() == [1]
    assert nearest_neighbors(train, query, 2, 3, 1e-4).tolist() == [0]


def test_a_linear_probe_separates_what_a_line_separates() -> None:
    features = torch.randn(200, 5, generator=torch.Generator().manual_seed(2))
    # One feature decides; another is much larger, and one is constant.
    features[:, 1] *= 1e4
    features[:, 2] = 3.0
    labels = (features[:, 0] > 0).long()
    train = LabelledFeatures(features[:150], labels[:150])
    found = linear_predictions(train, features[150:])
    assert (found == labels[150:]).double().mean() > 0.9


def probed(probes: FeatureProbes, **data: Any) -> tuple[dict[str, Tensor], Any]:
    torch.manual_seed(0)
    teacher = ModelTeacher(network=mlp(32), layers=LAYERS)
    losses: Any = {"cosine": FeatureCosine(map_layer=None)}
    module = distillation(losses, teacher, layers=LAYERS)
    run = trainer(callbacks=[probes], limit_train_batches=2, num_sanity_val_steps=1)
    run.fit(module, datamodule=DigitsDataModule(batch_size=64, fraction=0.5, **data))
    return {name: value.clone() for name, value in run.callback_metrics.items()}, run


def test_features_of_digits_predict_their_classes() -> None:
    """Random features suffice for digits, but the classifier of the student was never trained."""
    logged, run = probed(FeatureProbes())
    assert logged["val_knn_accuracy"] > 0.6
    assert logged["val_linear_accuracy"] > 0.6
    assert logged["val_accuracy"] < 0.5
    run.test(run.lightning_module, datamodule=run.datamodule, verbose=False)
    assert run.callback_metrics["test_linear_accuracy"] > 0.6
    assert run.callback_metrics["test_knn_accuracy"] > 0.6


def test_the_student_does_not_change() -> None:
    _, run = probed(FeatureProbes())
    module = run.lightning_module
    before = copied(module)
    probes = FeatureProbes(layer="map")
    values = probes.measure(run, module, run.datamodule, "validation")
    assert same(copied(module), before)
    assert set(values) == {"knn_accuracy", "linear_accuracy"}
    # The taps of the losses are there again, and those of the probe are gone.
    assert set(module.learner.taps.modules) == {"penultimate"}
    assert len(module.net.get_submodule("body")._forward_hooks) == 0
    assert probes.measure(run, module, run.datamodule, "validation") == values


def test_only_labelled_samples_count_and_at_most_so_many() -> None:
    logged, run = probed(FeatureProbes(linear=False), label_fraction=0.3)
    assert "val_linear_accuracy" not in logged
    module, data = run.lightning_module, run.datamodule
    probes = FeatureProbes(neighbors=0, max_samples=50)
    found = probes._features(run, module, data, "train")
    assert 0 < len(found.labels) < 50
    assert (found.labels >= 0).all()
    assert set(probes.measure(run, module, data, "validation")) == {"linear_accuracy"}


def test_in_a_config(tmp_path: Path) -> None:
    config = tmp_path / "probes.yaml"
    config.write_text(
        """
trainer:
  callbacks:
    - class_path: kd_lightning.runs.probes.FeatureProbes
      init_args: {layer: penultimate, every_n_epochs: 2}
model:
  init_args:
    layers: {penultimate: "head:input"}
"""
    )
    files = ["teachers/digits_mlp.yaml", str(config)]
    run = run_fit(tmp_path / "run", files, "--trainer.max_epochs=3", "--run.test=last")
    assert {"val_knn_accuracy", "test_linear_accuracy"} <= run.metrics.keys()
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val_knn_accuracy")
    measured = [row.split(",")[column] for row in rows[1:]]
    # After the second and the last of three epochs.
    assert len([value for value in measured if value]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"neighbors": -1}, "neighbors must be a whole number of at least 0"),
        ({"max_samples": 1}, "max_samples must be a whole number of at least 2"),
        ({"every_n_epochs": 0}, "every_n_epochs must be a whole number of at least 1"),
        ({"temperature": 0.0}, "temperature must be a finite number greater than 0"),
        ({"strength": -1.0}, "strength must be a finite number greater than 0"),
        ({"neighbors": 0, "linear": False}, "measures nothing"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FeatureProbes(**arguments)


def test_a_layer_without_a_name() -> None:
    with pytest.raises(UserError, match="reads the role 'stage9'"):
        probed(FeatureProbes(layer="stage9"))
