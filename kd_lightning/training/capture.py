"""A loss that is not finite: who is at fault, and a file that replays the step.

    from kd_lightning.training.capture import replay

    step = replay("runs/NAME/capture-epoch3-batch17.pt", module, datamodule)
    step.terms["kd"]         # the value that ended the run, with its graph
    step.teacher.logits      # what the losses saw

A capture holds tensors and plain values only: reading one runs no code.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.loader import BatchLoader
from kd_lightning.errors import UserError
from kd_lightning.randomness import reseed
from kd_lightning.training.capture_file import (
    Content,
    FailedStep,
    read_capture,
    write_capture,
)
from kd_lightning.training.faults import LOWER_RATE, Fault, find_fault
from kd_lightning.training.means import NotFinite
from kd_lightning.types import Batch, Output, Window

if TYPE_CHECKING:
    from kd_lightning.training.module import TrainingModule

AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class WindowStart(NamedTuple):
    """Where a window of steps begins that are checked together.

    Attributes:
        batch_idx: of the first batch in its epoch.
        step: optimizer steps before it.
    """

    batch_idx: int
    step: int


# -- stopping --------------------------------------------------------------------------------------


def stop(
    module: TrainingModule,
    failed: FailedStep,
    batch: Batch | None,
    student: Output | None,
    teacher: Output | None,
) -> None:
    """Write a capture, if the module has a folder for it, and end the training.

    Args:
        module: that trains.
        failed: the step.
        batch: of the step; `None` if it cannot be made again.
        student, teacher: their outputs, as far as they are known.

    Raises:
        UserError: always; it says which term and which side is not finite.
    """
    names = list(module.losses)
    # The total may be infinite although every term is finite, then no term is named.
    broken = {}
    for name, value in zip(names, failed.terms, strict=True):
        if not torch.tensor(value).isfinite():
            broken[name] = value
    fault = None if batch is None else find_fault(student, teacher, batch)
    path = None
    if batch is not None and module.capture_folder is not None:
        path = write_capture(module, failed, batch, teacher, fault)
    raise UserError(_message(module, failed, broken, fault, path))


def stop_after_window(
    module: TrainingModule,
    start: WindowStart,
    failed: NotFinite,
) -> None:
    """The same for a step of the past, whose batch and teacher's output are made again.

    Args:
        module: that trains.
        start: where the window began.
        failed: the first step of the window that is not finite.

    Raises:
        UserError: always.
    """
    batch_idx = start.batch_idx + failed.position
    # Gradients of several batches may add up to one step.
    steps_within = failed.position // module.trainer.accumulate_grad_batches
    step = start.step + steps_within
    known = FailedStep(batch_idx, step, failed.total, failed.terms, exact=False)
    batch = rebuild_batch(module, batch_idx)
    if batch is not None:
        batch = module.networks_batch(batch)
    teacher = None
    active = module.active_teacher if module.objective.uses_teacher else None
    if batch is not None and active is not None:
        with module.trainer.precision_plugin.train_step_context():
            teacher = active(batch)
    # The student has changed since: its output would be another one.
    stop(module, known, batch, None, teacher)


def _message(
    module: TrainingModule,
    failed: FailedStep,
    broken: Mapping[str, float],
    fault: Fault | None,
    path: Path | None,
) -> str:
    """One line: the step, the terms that are not finite, who is at fault, and a remedy."""
    clauses = []
    for name, value in broken.items():
        clauses.append(f"{name!r} is {value}")
    terms = f"its term {', '.join(clauses)}" if clauses else "its terms are finite"
    because = ""
    if fault is not None and fault.detail:
        because = f" because {fault.detail} not finite"
    remedy = LOWER_RATE if fault is None else fault.remedy
    written = "" if path is None else f"; the step is captured in {path}"
    return (
        f"the loss became {failed.total} in epoch {module.current_epoch}, at step {failed.step} "
        f"(batch {failed.batch_idx}): {terms}{because}; {remedy}{written}"
    )


def rebuild_batch(module: TrainingModule, batch_idx: int) -> Batch | None:
    """Make a batch of the current epoch again, on the module's device.

    Batches are a function of seed, epoch and rank.

    Args:
        module: that trains.
        batch_idx: in the epoch.

    Returns:
        `None` if the loader is not one of this package.
    """
    loader = module.trainer.train_dataloader
    if not isinstance(loader, BatchLoader):
        return None
    # The loader that trains is in use; its copy reads the same source.
    twin = copy.copy(loader)
    # From the start of the batch's window, because the loader counts the terms of whole windows.
    offset = batch_idx % loader.accumulate()
    twin.skip = batch_idx - offset
    twin.prefetch = 0
    batch = next(itertools.islice(twin, offset, None))
    moved: Batch = module.trainer.strategy.batch_to_device(batch)
    converted: Batch = module.trainer.precision_plugin.convert_input(moved)
    return converted


# -- replaying -------------------------------------------------------------------------------------


@dataclass
class ReplayedStep:
    """A step that was computed again.

    Attributes:
        total: the weighted sum of the losses, with a graph.
        terms: each loss unweighted, by name.
        student, teacher: the outputs that the losses saw.
        batch: of the step.
        content: of the capture file.
    """

    total: Tensor
    terms: dict[str, Tensor]
    student: Output
    teacher: Output | None
    batch: Batch
    content: Content


def replay(
    path: str | Path,
    module: TrainingModule,
    datamodule: DataModule | None = None,
) -> ReplayedStep:
    """Compute the captured step again: the same weights, batch and random numbers.

    If the capture's `exact` is false, its weights are later ones than the step's: an accelerator
    checks the loss once per `log_every_n_steps` steps. Resume the run with
    `--run.check_steps=true` to stop and capture at the step itself.

    Args:
        path: of the capture.
        module: built as the run's config says; receives the captured weights.
        datamodule: of the run; needed if the module has not been attached to it.

    Raises:
        UserError: if the file is no capture, or the module is not the run's.
    """
    content = read_capture(path)
    if datamodule is not None:
        module.attach(datamodule)
    if module.task is None:
        raise UserError(
            "the module does not know its data; give replay a datamodule, too"
        )
    _restore(module, content, path)
    fields = dict(content["batch"])
    # Captures of earlier versions have no window.
    if fields.get("window") is not None:
        fields["window"] = Window(*fields["window"])
    batch = Batch(**fields).to(module.device)
    module.objective.begin_epoch(content["epoch"])
    with _autocast(content["precision"], module.device):
        # In the order of `training_step`: the teacher may draw random numbers, too.
        reseed(module.device, *content["rng"])
        teacher = None
        if module.objective.uses_teacher and module.active_teacher is not None:
            teacher = module.active_teacher(batch)
        student = module.learner(batch)
        total, terms, _ = module.objective(student, teacher, batch)
    named = dict(zip(module.losses, terms, strict=True))
    return ReplayedStep(total, named, student, teacher, batch, content)


def _restore(module: TrainingModule, content: Content, path: str | Path) -> None:
    """Give a module the captured weights, and each submodule the mode that it had.

    Raises:
        UserError: if they are of another network or other losses.
    """
    try:
        module.net.load_state_dict(content["student"])
        module.losses.load_state_dict(content["losses"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the capture {path} is of another network or losses: {reason}"
        ) from error
    for name, each in module.learner.named_modules():
        each.training = content["training"].get(name, each.training)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a mixed-precision step runs."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])
