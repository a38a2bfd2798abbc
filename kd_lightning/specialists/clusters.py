"""Classes that a network confuses, in sets that overlap (Hinton et al. 2015, section 5.3)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.randomness import seed_from
from kd_lightning.types import full


def prediction_covariance(
    logits: Tensor, temperature: float = 1.0, correlation: bool = False
) -> NDArray[np.float64]:
    """How the predictions of a class go together with those of another, `(K, K)`.

    Args:
        logits: `(N, K)`, of N samples.
        temperature: the predictions are `softmax(logits / temperature)`.
        correlation: divide by both standard deviations; a class that is always predicted alike correlates with none.
    """
    probs = torch.softmax(full(logits).double() / temperature, dim=-1).numpy()
    covariance = np.cov(probs, rowvar=False)
    if correlation:
        deviation = np.sqrt(covariance.diagonal())
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        covariance = covariance * scale[:, None] * scale
    return np.asarray(covariance, dtype=np.float64)


def confusable_classes(
    logits: Tensor,
    specialists: int,
    classes_each: int,
    temperature: float = 4.0,
    correlation: bool = True,
    seed: int = 0,
) -> list[list[int]]:
    """The classes of each specialist: K-means on the columns of the covariance of a generalist's predictions.

    A partition cannot give a class several specialists, as the paper's table of coverage has them. So each centroid takes the
    `classes_each` columns that are nearest to it, whichever cluster they fell into: sets overlap, and a class may be in none.

    The paper clusters the plain covariance (`temperature=1, correlation=False`) of a network that is right about a quarter of
    the time. One that is sure of nearly every training sample gives columns that differ in their diagonal alone, and K-means
    then finds single classes; softened predictions and correlations have the small numbers count.

    Args:
        logits: `(N, K)`, the generalist's, on training samples.
        specialists: how many sets.
        classes_each: the size of each.
        temperature, correlation: see prediction_covariance.
        seed: of K-means.

    Returns:
        For each specialist its class ids, ascending. The same for the same arguments.

    Raises:
        UserError: where the numbers do not fit the classes.
    """
    classes = logits.shape[-1]
    if not 1 <= specialists <= classes:
        raise UserError(
            f"data.specialists must be 1 to the number of classes, {classes}, got {specialists}"
        )
    # With a single class left outside there would be no dustbin, but another class.
    if not 1 <= classes_each <= classes - 2:
        raise UserError(
            f"data.classes_each must be 1 to {classes - 2}, two less than the classes, got {classes_each}"
        )
    if not temperature > 0:
        raise UserError(f"data.cluster_temperature must be greater than 0, got {temperature}")
    columns = prediction_covariance(logits, temperature, correlation).T
    from sklearn.cluster import MiniBatchKMeans  # here, because it costs 0.8 s

    means = MiniBatchKMeans(
        specialists, random_state=seed_from("clusters", seed) % 2**32, n_init=10, batch_size=1024
    )
    centroids = means.fit(columns).cluster_centers_
    distance = np.stack([((columns - centroid) ** 2).sum(1) for centroid in centroids])
    nearest = distance.argsort(1, kind="stable")[:, :classes_each]
    return [sorted(row) for row in nearest.tolist()]
