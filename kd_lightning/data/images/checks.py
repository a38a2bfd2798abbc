"""Checks of a user's own samples and of image options, with one line for each mistake."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.data.images.augment import Augmentation, Mixing
from kd_lightning.data.images.source import Images
from kd_lightning.data.subsets import check_classes, check_fraction
from kd_lightning.errors import UserError
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.types import UNLABELLED

_COLORS = (1, 3, 4)
"""Numbers of channels that images have in practice."""


def checked_samples(
    samples: object,
    split: str,
    channels: int,
    num_classes: int,
    task: Task,
) -> Images:
    """Check what `load(split)` returned.

    Args:
        samples: what it returned.
        split: "train" or "test".
        channels: the number of channels that `mean` has values for.
        num_classes: the number of classes.
        task: what is predicted.

    Returns:
        The samples, with labels as int64 where the task has whole-number labels.

    Raises:
        UserError: for anything but uint8 images `(N, C, H, W)` and as many valid labels.
    """
    owner = f"load({split!r})"
    if not isinstance(samples, Images):
        raise UserError(
            f"{owner} must return kd_lightning.data.Images(images, target), got "
            f"{type(samples).__name__}"
        )
    # Users hand over NumPy arrays, whose methods differ from a tensor's.
    for name, value in (("images", samples.images), ("target", samples.target)):
        if not isinstance(value, Tensor):
            raise UserError(
                f"{owner}: {name} must be a torch tensor, got {type(value).__name__}; for a NumPy "
                "array use torch.from_numpy"
            )
    _check_images(samples.images, owner, channels)
    if len(samples.images) != len(samples.target):
        raise UserError(
            f"{owner}: {len(samples.images):,} images, but {len(samples.target):,} targets"
        )
    if len(samples.images) == 0:
        raise UserError(
            f"{owner} returned no samples; the split {split} must have at least one"
        )
    target = _checked_target(samples.target, owner, num_classes, task)
    return Images(samples.images, target)


def _check_images(images: Tensor, owner: str, channels: int) -> None:
    """Check that images are uint8 `(N, channels, H, W)`."""
    shape = list(images.shape)
    problem = (
        f"{owner}: images must be uint8 (N, C, H, W) with C = {channels}, as mean has"
    )
    if images.dtype != torch.uint8:
        remedy = "(255 * images).round().to(torch.uint8) converts images in [0, 1]"
        if not images.is_floating_point():
            remedy = "images.to(torch.uint8) converts whole numbers from 0 to 255"
        raise UserError(f"{problem}; got {images.dtype}; {remedy}")
    # The remaining cases differ in what the user has to do.
    if images.ndim == 4 and images.shape[1] == channels:
        return
    remedy = "give one value of mean and std per channel"
    if images.ndim == 3 and channels == 1:
        remedy = "images[:, None] adds the channel"
    elif images.ndim != 4:
        remedy = "give each sample the shape (C, H, W), for example with images.view(N, C, H, W)"
    elif images.shape[3] == channels or (
        images.shape[3] in _COLORS and images.shape[1] not in _COLORS
    ):
        remedy = (
            "the channels are last (NHWC); use images.permute(0, 3, 1, 2).contiguous()"
        )
    raise UserError(f"{problem}; got {shape}; {remedy}")


def _checked_target(target: Tensor, owner: str, num_classes: int, task: Task) -> Tensor:
    """Targets of the shape and type of the task; whole numbers as int64."""
    blank = task.blank_target(Spec(num_classes=num_classes), 1)
    if target.shape[1:] != blank.shape[1:]:
        raise UserError(_shape_problem(target, owner, blank, task))
    # Real values need no range, and NaN marks a missing one.
    if blank.is_floating_point():
        return target
    labels = target.long()
    if target.is_floating_point() and not torch.equal(labels.to(target.dtype), target):
        raise UserError(
            f"{owner}: target must be whole numbers (int64), got {target.dtype} values such as "
            f"{float(target[labels.to(target.dtype) != target][0]):g}"
        )
    # Entries that exist without a label are allowed everywhere.
    labelled = labels[labels != UNLABELLED]
    # Each entry of a target chooses one of as many classes as a row of logits has.
    num_values = task.row_width(Spec(num_classes=num_classes))
    if len(labelled) == 0:
        return labels
    low = int(labelled.min())
    high = int(labelled.max())
    if low < 0 or high >= num_values:
        remedy = f"{UNLABELLED} marks a missing label"
        # Some data sets count classes from 1.
        if low == 1 and high == num_values:
            remedy = "they start at 1; subtract 1"
        elif high >= num_values:
            remedy = "name all classes in `classes`, or remove these samples"
        raise UserError(
            f"{owner}: labels must be 0 to {num_values - 1}, got {low} to {high}; {remedy}"
        )
    return labels


def _shape_problem(target: Tensor, owner: str, blank: Tensor, task: Task) -> str:
    """Describe why the targets' shape does not fit the task, and what to do."""
    expected = ", ".join(["N", *(str(size) for size in blank.shape[1:])])
    problem = f"{owner}: {task.name} has targets of shape ({expected}), got {list(target.shape)}"
    if blank.ndim != 1 or target.ndim != 2:
        return problem
    # A column of labels, as tables give it.
    if target.shape[1] == 1:
        return f"{problem}; use target[:, 0]"
    return (
        f"{problem}; for several labels per image, set the class attribute `task = "
        "kd_lightning.tasks.MultilabelClassification()`; one-hot targets become labels with "
        "target.argmax(1)"
    )


def check_shares(
    validation: float,
    fraction: float,
    label_fraction: float,
    parts: int,
    part: int,
) -> None:
    """Check the options of `ImageDataModule` that divide the training set.

    Raises:
        UserError: if one is out of range.
    """
    check_fraction("data.fraction", fraction)
    check_fraction("data.label_fraction", label_fraction, zero=True)
    if not 0 <= validation < 1:
        raise UserError(
            f"data.validation must be a fraction in [0, 1), got {validation}; "
            "0 holds nothing out"
        )
    if not 0 <= part < parts:
        raise UserError(
            f"data.part must be in 0 to data.parts - 1 = {parts - 1}, got {part}"
        )


def check_batches(
    batch_size: int,
    eval_batch_size: int,
    copies: int,
    prefetch: int,
    views: int | None,
) -> None:
    """Check the options of `ImageDataModule` that form batches.

    Raises:
        UserError: if one is out of range.
    """
    if batch_size < 1 or eval_batch_size < 1:
        raise UserError("data.batch_size and data.eval_batch_size must be at least 1")
    if copies < 1 or prefetch < 0:
        raise UserError("data.copies must be at least 1 and data.prefetch at least 0")
    if views is not None and views < 1:
        raise UserError(
            f"data.views must be at least 1, got {views}; leave it out for a new view every epoch"
        )


def checked_normalization(
    name: str,
    values: Sequence[float] | None,
    default: Sequence[float],
    channels: int,
) -> tuple[float, ...]:
    """Check the option `data.mean` or `data.std`.

    Args:
        name: "mean" or "std".
        values: the option; `None`: not given.
        default: of the data.
        channels: how many channels the network reads. Gray images may have as many values as the
            network reads channels, because they are repeated to these.

    Returns:
        One value per channel, of pixel values in [0, 1].

    Raises:
        UserError: for a wrong number of values, or values that are out of range.
    """
    if values is None:
        return tuple(default)
    if len(values) not in (len(default), channels):
        raise UserError(
            f"data.{name} must have one value per channel, {len(default)}, got {len(values)}"
        )
    for value in values:
        in_range = 0 <= value <= 1 if name == "mean" else 0 < value <= 1
        if not math.isfinite(value) or not in_range:
            interval = "[0, 1]" if name == "mean" else "(0, 1]"
            remedy = "; divide values of pixels in [0, 255] by 255" if value > 1 else ""
            raise UserError(
                f"data.{name} must be in {interval}, the scale of pixel values in [0, 1], got "
                f"{value:g}{remedy}"
            )
    return tuple(float(value) for value in values)


def check_channels(own: int, channels: int | None) -> None:
    """Check the option `data.channels`.

    Args:
        own: the channels of the images.
        channels: those that the network reads; `None` for the images' own.

    Raises:
        UserError: if the images cannot be repeated to that number.
    """
    # Only gray images have one channel that can stand for several.
    if channels is None or (channels >= 1 and own in (1, channels)):
        return
    raise UserError(
        f"data.channels: images of {own} channels cannot be repeated to {channels}"
    )


def check_chosen_classes(
    task: Task,
    num_classes: int,
    keep: list[int],
    drop: list[int],
) -> None:
    """Check the options `data.keep_classes` and `data.drop_classes`.

    Raises:
        UserError: if the classes cannot be chosen, or do not exist.
    """
    # A target `(B,)` is one label per image; several labels have no class to choose by.
    blank = task.blank_target(Spec(num_classes=num_classes), 1)
    if blank.ndim != 1 and (keep or drop):
        raise UserError(
            "data.keep_classes and data.drop_classes need one label per image"
        )
    check_classes("data.keep_classes", keep, num_classes)
    check_classes("data.drop_classes", drop, num_classes)


def check_mixing_is_last(augment: Sequence[Augmentation]) -> None:
    """Check that no augmentation follows one that mixes samples.

    Raises:
        UserError: if one does.
    """
    for augmentation in augment[:-1]:
        if isinstance(augmentation, Mixing):
            raise UserError(
                f"data.augment: {type(augmentation).__name__} mixes samples that are already "
                "augmented; put it last"
            )
