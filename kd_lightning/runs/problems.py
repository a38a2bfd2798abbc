"""Turns errors of a running run that a user can cause into one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kd_lightning.errors import UserError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""Errors that concern the disk, whatever file they name."""

_FAILED_WRITES = ("PytorchStreamWriter", "unexpected pos", "No space left")
"""What torch and safetensors say if a file cannot be written to its end."""

_BACKWARD_ERRORS = {
    "does not require grad and does not have a grad_fn": "no loss depends on what is trained; does "
    "the network detach its output, run under torch.no_grad, or have only frozen weights?",
    "backward through the graph a second time": "the network keeps tensors of an earlier step, "
    "such as a hidden state; detach them in its forward",
    "modified by an inplace operation": "a network changes a tensor in place that another layer "
    "still needs; use inplace=False and x = x + y in place of x += y",
}
"""What torch says about mistakes in a network's own code, and what they are."""


def explain(problem: BaseException, folder: Path, writes: bool) -> UserError | None:
    """What a user can do about an error, in one line; `None` if nothing is known.

    Args:
        problem: what stopped the run.
        folder: of the run.
        writes: whether this process writes to the folder.
    """
    if isinstance(problem, UserError):
        return None
    if "not used in producing the loss" in str(problem):
        return UserError(
            "some weights get no gradient from these losses; several devices then need "
            "--trainer.strategy=ddp_find_unused_parameters_true"
        )
    for words, reason in _BACKWARD_ERRORS.items():
        if isinstance(problem, RuntimeError) and words in str(problem):
            return UserError(f"the gradients cannot be computed: {reason}")
    is_setting = isinstance(problem, MisconfigurationException)
    if is_setting or str(problem).startswith("Early stopping conditioned on metric"):
        # Lightning's own text names the setting, and for a metric those that are logged.
        return UserError(str(problem))
    if writes and not folder.is_dir():
        return deleted(folder)
    for error in _chain(problem):
        if isinstance(error, OSError) and _is_about_writing(error, folder):
            where = error.filename or folder
            return UserError(
                f"cannot write {where} ({error.strerror}); {_next_step(folder)}"
            )
        if any(text in str(error) for text in _FAILED_WRITES):
            reason = str(error).partition("\n")[0]
            return UserError(
                f"cannot write to {folder}, perhaps because the disk is full ({reason}); "
                f"{_next_step(folder)}"
            )
    return None


def deleted(folder: Path) -> UserError:
    """The error of a run whose folder is gone."""
    return UserError(
        f"the run's folder {folder} was deleted while it ran; start the run again"
    )


def _next_step(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        return f"make room, then resume with: kd fit --ckpt_path {last}"
    return "make room, then start the run again"


def _is_about_writing(error: OSError, folder: Path) -> bool:
    if error.errno in _DISK_ERRORS:
        return True
    # Errors about other files, such as the data's, are not about the run's folder.
    if not isinstance(error.filename, str):
        return False
    return error.filename.startswith(str(folder))


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__
