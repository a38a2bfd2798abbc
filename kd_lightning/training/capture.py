"""A loss that is not finite: who is at fault, and a file that replays the step.

    from kd_lightning.training.capture import replay

    step = replay("runs/NAME/capture-epoch3-batch17.pt", module, datamodule)
    step.terms["kd"]         # the value that ended the run, with its graph
    step.teacher.logits      # what the losses saw

A capture holds tensors and plain values only: reading one runs no code.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.loader import BatchLoader
from kd_lightning.errors import UserError
from kd_lightning.randomness import reseed
from kd_lightning.training.faults import LOWER_RATE, Fault, find_fault
from kd_lightning.training.means import NotFinite
from kd_lightning.types import Batch, Output
from kd_lightning.weights import read_file

if TYPE_CHECKING:
    from kd_lightning.training.module import TrainingModule

VERSION = 1

AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class WindowStart(NamedTuple):
    """Where a window of steps begins that are checked together.

    Attributes:
        batch_idx: of the first batch in its epoch.
        step: optimizer steps before it.
    """

    batch_idx: int
    step: int


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
    broken = {}
    for name, value in zip(names, failed.terms, strict=True):
        if not torch.tensor(value).isfinite():
            broken[name] = value
    fault = None if batch is None else find_fault(student, teacher, batch)
    path = None
    if batch is not None and module.capture_folder is not None:
        path = _write(module, failed, batch, teacher, fault)
    raise UserError(_message(module, failed, broken, fault, path))


def stop_after_window(
    module: TrainingModule, start: WindowStart, failed: NotFinite
) -> None:
    """The same for a step of the past, whose batch and teacher's output are made again.

    Raises:
        UserError: always.
    """
    batch_idx = start.batch_idx + failed.position
    step = start.step + failed.position // module.trainer.accumulate_grad_batches
    known = FailedStep(batch_idx, step, failed.total, failed.terms, exact=False)
    batch = rebuild_batch(module, batch_idx)
    if batch is not None:
        batch = module.networks_batch(batch)
    teacher = None
    if (
        batch is not None
        and module.objective.uses_teacher
        and module.active_teacher is not None
    ):
        with module.trainer.precision_plugin.train_step_context():
            teacher = module.active_teacher(batch)
    stop(module, known, batch, None, teacher)


def _message(
    module: TrainingModule,
    failed: FailedStep,
    broken: Mapping[str, float],
    fault: Fault | None,
    path: Path | None,
) -> str:
    clauses = [f"{name!r} is {value}" for name, value in broken.items()]
    terms = f"its term {', '.join(clauses)}" if clauses else "its terms are finite"
    because = (
        f" because {fault.detail} not finite"
        if fault is not None and fault.detail
        else ""
    )
    remedy = LOWER_RATE if fault is None else fault.remedy
    written = "" if path is None else f"; the step is captured in {path}"
    return (
        f"the loss became {failed.total} in epoch {module.current_epoch}, at step {failed.step} "
        f"(batch {failed.batch_idx}): {terms}{because}; {remedy}{written}"
    )


def rebuild_batch(module: TrainingModule, batch_idx: int) -> Batch | None:
    """Make a batch of the current epoch again, on the module's device.

    Batches are a function of seed, epoch and rank.

    Returns:
        `None` if the loader is not one of this package.
    """
    loader = module.trainer.train_dataloader
    if not isinstance(loader, BatchLoader):
        return None
    twin = copy.copy(loader)
    twin.skip = batch_idx
    twin.prefetch = 0
    batch = next(iter(twin))
    moved: Batch = module.trainer.strategy.batch_to_device(batch)
    converted: Batch = module.trainer.precision_plugin.convert_input(moved)
    return converted


def _write(
    module: TrainingModule,
    failed: FailedStep,
    batch: Batch,
    teacher: Output | None,
    fault: Fault | None,
) -> Path:
    folder = module.capture_folder
    assert folder is not None
    config = folder / "config.yaml"
    content = {
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
        "training": {
            name: each.training for name, each in module.learner.named_modules()
        },
        "batch": _plain_batch(batch),
        "teacher_logits": None if teacher is None else teacher.logits.detach().cpu(),
        # The generators are a function of these numbers: `reseed` sets them in every step.
        "rng": list(module.step_seed(failed.batch_idx)),
        "teacher": module.provenance(),
        "spec": module.spec.to_dict() if module.spec is not None else None,
        "config": config.read_text() if config.is_file() else None,
    }
    path = folder / f"capture-epoch{module.current_epoch}-batch{failed.batch_idx}.pt"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, temporary)
    temporary.replace(path)
    return path


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


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
        plain[name] = value
    return plain


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
)


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
    content: dict[str, Any]


def replay(
    path: str | Path, module: TrainingModule, datamodule: DataModule | None = None
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
    content = read_file(path, "the capture")
    if content.get("kd_capture") != VERSION:
        raise UserError(
            f"{path} is not a capture of version {VERSION} of a training step"
        )
    if datamodule is not None:
        module.attach(datamodule)
    if module.task is None:
        raise UserError(
            "the module does not know its data; give replay a datamodule, too"
        )
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
    batch = Batch(**content["batch"]).to(module.device)
    module.objective.begin_epoch(content["epoch"])
    with _autocast(content["precision"], module.device):
        reseed(module.device, *content["rng"])
        teacher = None
        if module.objective.uses_teacher and module.active_teacher is not None:
            teacher = module.active_teacher(batch)
        student = module.learner(batch)
        total, terms, _ = module.objective(student, teacher, batch)
    named = dict(zip(module.losses, terms, strict=True))
    return ReplayedStep(total, named, student, teacher, batch, content)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a mixed-precision step runs."""
    if precision not in AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])
