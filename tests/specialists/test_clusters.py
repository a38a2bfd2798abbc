"""Clusters of classes with known confusions, and overlapping sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.specialists.clusters import confusable_classes, prediction_covariance
from tests.training.small import complaint

GROUPS = [[0, 4, 7], [1, 3, 8], [2, 5, 6]]


def confused(sure: float = 0.0, samples: int = 40) -> Tensor:
    """Logits of a network that confuses the classes of each group, `(9 * samples, 9)`."""
    noise = torch.randn(9 * samples, 9, generator=torch.Generator().manual_seed(0))
    target = torch.arange(9).repeat_interleave(samples)
    for group in GROUPS:
        noise[
            torch.isin(target, torch.tensor(group))[:, None]
            & torch.isin(torch.arange(9), torch.tensor(group))
        ] += 4.0
    noise[torch.arange(len(target)), target] += sure
    return noise


def test_covariance_is_the_definition() -> None:
    logits = 2 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    rows = [[float(torch.exp(z / 3)) for z in row] for row in logits.double()]
    probs = [[value / sum(row) for value in row] for row in rows]
    mean = [sum(column) / 50 for column in zip(*probs, strict=True)]
    expected = [
        [sum((p[i] - mean[i]) * (p[j] - mean[j]) for p in probs) / 49 for j in range(4)]
        for i in range(4)
    ]
    covariance = prediction_covariance(logits, temperature=3.0)
    assert covariance == pytest.approx(np.array(expected))
    correlation = prediction_covariance(logits, temperature=3.0, correlation=True)
    assert correlation.diagonal() == pytest.approx(np.ones(4))
    assert correlation[0, 1] == pytest.approx(
        expected[0][1] / np.sqrt(expected[0][0] * expected[1][1])
    )


def test_a_constant_prediction_has_no_correlation() -> None:
    logits = torch.tensor([[5.0, 0.0, -1e9], [0.0, 5.0, -1e9]])
    assert prediction_covariance(logits, correlation=True)[2].tolist() == [
        0.0,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(("temperature", "correlation"), [(1.0, False), (4.0, True)])
def test_finds_the_confused_classes(temperature: float, correlation: bool) -> None:
    clusters = confusable_classes(confused(), 3, 3, temperature, correlation)
    assert sorted(clusters) == GROUPS


def test_softened_correlations_find_them_if_the_network_is_nearly_sure() -> None:
    """They are the default, because a network hardly errs on its training samples."""
    logits = confused(sure=9.0)
    assert (
        logits.argmax(1) == torch.arange(9).repeat_interleave(40)
    ).double().mean() > 0.98
    assert sorted(confusable_classes(logits, 3, 3)) == GROUPS
    assert (
        sorted(confusable_classes(logits, 3, 3, temperature=1.0, correlation=False))
        != GROUPS
    )


@pytest.mark.parametrize("each", [1, 5, 7])
def test_sets_have_their_size_and_overlap(each: int) -> None:
    clusters = confusable_classes(confused(), 3, each)
    assert [len(set(ids)) for ids in clusters] == [each] * 3
    assert all(ids == sorted(ids) and set(ids) <= set(range(9)) for ids in clusters)
    if each > 3:
        assert len(set().union(*clusters)) < 3 * each
        # Confused classes are still in one set.
        assert all(any(set(group) <= set(ids) for ids in clusters) for group in GROUPS)


def test_a_seed_decides_the_clusters() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(2))
    first = confusable_classes(logits, 6, 8, seed=3)
    torch.manual_seed(7)
    np.random.seed(7)
    assert confusable_classes(logits, 6, 8, seed=3) == first
    assert confusable_classes(logits, 6, 8, seed=4) != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "data.specialists must be 1 to the number of classes, 9, got 0"),
        ((10, 3), "data.specialists must be 1 to the number of classes, 9, got 10"),
        (
            (3, 0),
            "data.classes_each must be 1 to 7, the number of classes minus 2, got 0",
        ),
        (
            (3, 8),
            "data.classes_each must be 1 to 7, the number of classes minus 2, got 8",
        ),
        ((3, 3, 0.0), "data.cluster_temperature must be greater than 0"),
    ],
)
def test_impossible_numbers_are_errors(
    arguments: tuple[int, int], message: str
) -> None:
    assert message in complaint(
        lambda: confusable_classes(confused(samples=2), *arguments)
    )
