"""The options `--run.*`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from kd_lightning.values import Value

Setting: TypeAlias = "Value | Callback | Sequence[Callback]"
"""An argument of the Trainer."""

TrainerSettings: TypeAlias = "Mapping[str, Setting]"
"""Arguments of the Trainer by name, as `--trainer.*` gives them."""


@dataclass
class RunOptions:
    """Where a run is stored and how it is logged.

    Attributes:
        name: of the run and its folder; a number is appended if the folder exists.
        root: folder of all runs.
        dir: the run's folder, instead of `root/name`; it must be new, unless the run is resumed.
        group: name of the runs in W&B that belong together.
        job_type: teacher, student or distill; derived from the module by default.
        tags: for W&B.
        wandb: log to Weights & Biases: "auto" is online if an API key is found, else offline.
        project: W&B project.
        entity: W&B user or team.
        test: after training, evaluate the "last" or the "best" checkpoint on the test set, once.
        report: before training, measure the teacher on the validation split and the losses on the
            first batch, print both, and warn of what looks wrong.
        strict: end the run before it trains if that report has warnings.
        check_steps: stop at the very step whose loss is not finite. A CPU always does; an
            accelerator checks every `log_every_n_steps` steps, so as not to wait in each.
        keep_memory: keep freed memory in the process, which can speed up steps with large tensors
            on a CPU (glibc only).
    """

    name: str | None = None
    root: str = "runs"
    dir: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] | None = None
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "kd_lightning"
    entity: str | None = None
    test: Literal["no", "last", "best"] = "no"
    report: bool = True
    strict: bool = False
    check_steps: bool = False
    keep_memory: bool = False
