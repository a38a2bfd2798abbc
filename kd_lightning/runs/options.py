"""What `--run.*` sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class RunOptions:
    """Where a run is kept and how it is logged.

    Attributes:
        name: of the run and its folder; a number is added where the folder exists.
        root: folder of all runs.
        dir: this very folder instead of `root/name`; it must be new, or the run's own where it is resumed.
        group: runs that belong together, in W&B.
        job_type: teacher, student or distill; guessed from the module where left out.
        tags: for W&B.
        wandb: log to Weights & Biases: "auto" is online where a key is known and offline otherwise.
        project: W&B project.
        entity: W&B user or team.
        test: after training, read the test set once with the "last" or the "best" checkpoint.
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
