"""Overlapping sets of classes that a network confuses (Hinton et al. 2015, section 5.3)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.randomness import seed_from
from kd_lightning.types import full


def prediction_covariance(
    logits: Tensor,
    temperature: float = 1.0,
    correlation: bool = False,
) -> NDArray[np.float64]:
    """Covariance of the predicted probabilities of each pair of classes, `(K, K)`.

    Args:
        logits: logits of N samples, `(N, K)`.
        temperature: the predictions are `softmax(logits / temperature)`.
        correlation: divide by both standard deviations. A class whose prediction never varies has
            a correlation of 0 with all classes.
    """
    # Softened probabilities are tiny: double precision keeps their covariance accurate.
    softened = full(logits).double() / temperature
    probs = torch.softmax(softened, dim=-1).numpy()
    covariance = np.cov(probs, rowvar=False)
    if correlation:
        # A division by zero is left out rather than suppressed: its result would be NaN.
        std = np.sqrt(covariance.diagonal())
        scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
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
    """Choose the classes of each specialist.

    K-means clusters the columns of the covariance of a generalist's predictions. In the paper's
    table of coverage a class can have several specialists, which a partition does not allow.
    Therefore each centroid gets the `classes_each` columns nearest to it, in whichever cluster
    they are: sets overlap, and a class can be in no set.

    The paper clusters the plain covariance (`temperature=1, correlation=False`) of a network that
    is right about a quarter of the time. A network that is sure of nearly every training sample
    gives columns that differ mainly in their diagonal, so that K-means finds single classes.
    Softened predictions and correlations give small probabilities more influence.

    Args:
        logits: the generalist's logits of training samples, `(N, K)`.
        specialists: number of sets.
        classes_each: number of classes per set.
        temperature: see `prediction_covariance`.
        correlation: see `prediction_covariance`.
        seed: seed of K-means.

    Returns:
        Per specialist its class ids, ascending; a function of the arguments.

    Raises:
        UserError: if a number does not fit the data or the temperature is not positive.
    """
    _check_numbers(logits.shape[-1], specialists, classes_each, temperature)
    columns = prediction_covariance(logits, temperature, correlation).T
    # Importing scikit-learn takes 0.8 s.
    from sklearn.cluster import MiniBatchKMeans

    # scikit-learn accepts seeds of 32 bits only.
    random_state = seed_from("clusters", seed) % 2**32
    kmeans = MiniBatchKMeans(
        specialists, random_state=random_state, n_init=10, batch_size=1024
    )
    centroids = kmeans.fit(columns).cluster_centers_
    return _nearest_columns(columns, centroids, classes_each)


def _nearest_columns(
    columns: NDArray[np.float64],
    centroids: NDArray[np.float64],
    count: int,
) -> list[list[int]]:
    """The columns nearest to each centroid, in ascending order of their numbers."""
    # Unlike the labels of K-means, the nearest columns of two centroids can overlap.
    distances = []
    for centroid in centroids:
        squares = (columns - centroid) ** 2
        distances.append(squares.sum(1))
    # A stable sort breaks ties by class id, so the sets do not depend on numpy's algorithm.
    order = np.stack(distances).argsort(1, kind="stable")
    nearest = order[:, :count]
    return [sorted(ids) for ids in nearest.tolist()]


def _check_numbers(
    classes: int,
    specialists: int,
    classes_each: int,
    temperature: float,
) -> None:
    """Refuse numbers that do not fit the data's number of classes."""
    if not 1 <= specialists <= classes:
        raise UserError(
            f"data.specialists must be 1 to the number of classes, {classes}, got {specialists}"
        )
    # If only one class were outside, the dustbin would be just that class.
    if not 1 <= classes_each <= classes - 2:
        raise UserError(
            f"data.classes_each must be 1 to {classes - 2}, "
            f"the number of classes minus 2, got {classes_each}"
        )
    if not temperature > 0:
        raise UserError(
            f"data.cluster_temperature must be greater than 0, got {temperature}"
        )
