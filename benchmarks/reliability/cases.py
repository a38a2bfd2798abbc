"""One input that a command is tried with, and what it should do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Expected = Literal["refused", "either", "accepted"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def nothing(folder: Path) -> None:
    """Prepare no files."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        group: for the table.
        name: unique within its group.
        arguments: of `kd`.
        prepare: writes the files that the arguments name into the folder of the command.
        expected: "refused", or "either" if accepting the input is right or harmless too.
            "accepted" marks good input: it shows that the others are refused for their faults.
    """

    group: str
    name: str
    arguments: list[str]
    prepare: Callable[[Path], None] = nothing
    expected: Expected = "refused"


@dataclass(frozen=True)
class Trained:
    """Finished runs that cases copy and damage.

    Attributes:
        teacher: a run folder of a classifier on digits.
        student: a run folder of a student of that teacher.
        cache: a cache of that teacher.
    """

    teacher: Path
    student: Path
    cache: Path

    @property
    def checkpoint(self) -> Path:
        """The teacher's last checkpoint."""
        return self.teacher / "checkpoints" / "last.ckpt"


def configs(*names: str) -> list[str]:
    """`-c` with each of these shipped configs."""
    arguments = []
    for name in names:
        arguments += ["-c", str(CONFIGS / name)]
    return arguments


SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--run.dir=run",
]
"""A run of seconds."""

TEACHER = [
    "fit",
    *configs(
        "trainer.yaml",
        "data/digits.yaml",
        "teachers/digits_mlp.yaml",
        "loggers/csv.yaml",
    ),
    *SHORT,
]


def student(teacher: str) -> list[str]:
    """A short distillation from the teacher of that checkpoint."""
    names = ("trainer.yaml", "data/digits.yaml", "pairs/digits_mlp256_mlp16.yaml")
    return [
        "fit",
        *configs(*names, "methods/kd.yaml", "loggers/csv.yaml"),
        *SHORT,
        f"--model.teacher.checkpoint={teacher}",
    ]
