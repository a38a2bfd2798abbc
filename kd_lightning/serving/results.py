"""Turns a network's output into what people read: classes, probabilities, values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.serving.network import LoadedNetwork
from kd_lightning.tasks import (
    Classification,
    LanguageModelling,
    MaskedLanguageModelling,
    Regression,
    Segmentation,
    SequenceToSequence,
)
from kd_lightning.values import Value

Result = dict[str, Value]
"""What is written or answered about one sample, in plain values."""

LANGUAGE_TASKS = (
    LanguageModelling.name,
    MaskedLanguageModelling.name,
    SequenceToSequence.name,
)
"""The tasks of language models, which predict many tokens per input."""

DIGITS = 6
"""Decimal places of a probability; float32 has little more."""


def check_task(network: LoadedNetwork) -> None:
    """Refuse a task whose predictions have no such form.

    Raises:
        UserError: for a language model.
    """
    if network.task in LANGUAGE_TASKS:
        raise UserError(
            f"{network.name} is a language model, whose predictions are not one result "
            "per input"
        )


def result_of(network: LoadedNetwork, values: Tensor, top: int) -> Result:
    """What a network predicts for one sample.

    Args:
        network: that predicted.
        values: its output `(K,)`: probabilities, or real values for regression.
        top: how many further classes to name, the most probable first.

    Returns:
        `class`, `probability` and `alternatives` for one label per sample; `values` by
        name for regression; `probabilities` by name for several labels.
    """
    names = names_of(network.classes, len(values))
    if network.task == Regression.name:
        exact = [float(f"{value:.9g}") for value in values.tolist()]
        return {"values": dict(zip(names, exact, strict=True))}
    rounded = [round(value, DIGITS) for value in values.tolist()]
    if network.task != Classification.name:
        return {"probabilities": dict(zip(names, rounded, strict=True))}
    # A stable order, so that equal probabilities give the class that argmax gives.
    order = values.argsort(descending=True, stable=True).tolist()
    best, *others = order
    alternatives: list[Value] = []
    for number in others[:top]:
        alternatives.append({"class": names[number], "probability": rounded[number]})
    result: Result = {"class": names[best], "probability": rounded[best]}
    if top > 0:
        result["alternatives"] = alternatives
    return result


def names_of(classes: Sequence[str], number: int) -> list[str]:
    """The names of the classes; their numbers if they have no names."""
    return list(classes) or [str(index) for index in range(number)]


def has_masks(network: LoadedNetwork) -> bool:
    """Whether a network predicts a class for each pixel."""
    return network.task == Segmentation.name
