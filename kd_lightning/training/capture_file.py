"""The file of a captured step: tensors and plain values only, so that reading it runs no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.training.faults import Fault
from kd_lightning.types import Batch, Output, Window
from kd_lightning.weights import read_file

if TYPE_CHECKING:
    from kd_lightning.training.module import TrainingModule

VERSION = 1

Content = dict[str, Any]
"""What a capture file holds, by name."""

BATCH_FIELDS = (
    "inputs",
    "target",
    "index",
    "view",
    "split",
    "teacher_inputs",
    "placeholder",
    "partner",
    "share",
    "positions",
    "paired",
    "window",
)
"""The fields of a batch that a capture holds."""


class FailedStep(NamedTuple):
    """A training step whose total loss is not finite.

    Attributes:
        batch_idx: of the batch in its epoch.
        step: optimizer steps before it.
        total: the weighted sum of the losses.
        terms: each loss unweighted, in the order of the losses.
        exact: whether the student still has the weights of that step.
    """

    batch_idx: int
    step: int
    total: float
    terms: list[float]
    exact: bool


def write_capture(
    module: TrainingModule,
    failed: FailedStep,
    batch: Batch,
    teacher: Output | None,
    fault: Fault | None,
) -> Path:
    """Write a capture whole or not at all.

    Args:
        module: that trains; its `capture_folder` is set.
        failed: the step.
        batch: of the step.
        teacher: its output, if it is known.
        fault: who is at fault, if it is known.

    Returns:
        The path of the file.
    """
    folder = module.capture_folder
    assert folder is not None
    content = _content(module, failed, batch, teacher, fault, folder / "config.yaml")
    path = folder / f"capture-epoch{module.current_epoch}-batch{failed.batch_idx}.pt"
    # A process that dies while it writes leaves no half capture under this name.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, temporary)
    temporary.replace(path)
    return path


def _content(
    module: TrainingModule,
    failed: FailedStep,
    batch: Batch,
    teacher: Output | None,
    fault: Fault | None,
    config: Path,
) -> Content:
    """What a capture holds; see `write_capture`."""
    # Dropout and batch normalization may be frozen in parts of the network.
    modes = {}
    for name, each in module.learner.named_modules():
        modes[name] = each.training
    return {
        "kd_capture": VERSION,
        "epoch": module.current_epoch,
        "step": failed.step,
        "batch_idx": failed.batch_idx,
        "total": failed.total,
        "terms": dict(zip(module.losses, failed.terms, strict=True)),
        "fault": None if fault is None else fault.who,
        "exact": failed.exact,
        "precision": str(module.trainer.precision),
        "student": _on_cpu(module.net.state_dict()),
        "losses": _on_cpu(module.losses.state_dict()),
        "training": modes,
        "batch": _plain_batch(batch),
        "teacher_logits": None if teacher is None else teacher.logits.detach().cpu(),
        # The generators are a function of these numbers: `reseed` sets them in every step.
        "rng": list(module.step_seed(failed.batch_idx)),
        "teacher": module.provenance(),
        "spec": module.spec.to_dict() if module.spec is not None else None,
        "config": config.read_text() if config.is_file() else None,
    }


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that neither a graph nor a device holds."""
    copies = {}
    for name, tensor in state.items():
        copies[name] = tensor.detach().cpu().clone()
    return copies


def _plain_batch(batch: Batch) -> dict[str, object]:
    """A batch in tensors and plain values, on the CPU; cached outputs are read again."""
    plain: dict[str, object] = {}
    for name in BATCH_FIELDS:
        value = getattr(batch, name)
        if isinstance(value, Tensor):
            # A slice would be saved with all that it was cut from.
            value = value.detach().cpu().clone()
        elif isinstance(value, Mapping):
            value = _on_cpu(value)
        elif isinstance(value, Window):
            # Files hold no classes; `replay` makes it a Window again.
            value = list(value)
        plain[name] = value
    return plain


def read_capture(path: str | Path) -> Content:
    """The content of a capture.

    Args:
        path: of the file.

    Raises:
        UserError: if the file is no capture of this version.
    """
    content = read_file(path, "the capture")
    if content.get("kd_capture") != VERSION:
        raise UserError(
            f"{path} is not a capture of version {VERSION} of a training step"
        )
    return content
