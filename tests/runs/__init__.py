"""What the tests of runs share: the arguments of small runs on the digits, and `kd` called as a user would see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kd_lightning.cli import main

COMMON = [
    *(
        "-c",
        "configs/trainer.yaml",
        "-c",
        "configs/data/digits.yaml",
        "-c",
        "configs/loggers/csv.yaml",
    ),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
]
TEACHER = ["fit", *COMMON, "-c", "configs/teachers/digits_mlp.yaml"]
PAIR = [
    "fit",
    *COMMON,
    "-c",
    "configs/pairs/digits_mlp256_mlp16.yaml",
    "-c",
    "configs/methods/kd.yaml",
]
"""A student without its teacher's checkpoint."""


def student(teacher: Path | str) -> list[str]:
    """Arguments that distil the teacher at that checkpoint."""
    return [*PAIR, f"--model.teacher.checkpoint={teacher}"]


@dataclass
class Outcome:
    """What a user sees of a command."""

    code: int
    out: str
    err: str


Kd = Callable[..., Outcome]


@contextmanager
def python_warnings() -> Iterator[None]:
    """Show warnings on standard error as a plain Python process does; pytest would swallow them."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(
            warnings.formatwarning(message, category, filename, lineno), file=sys.stderr
        )

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for hidden in (
            DeprecationWarning,
            PendingDeprecationWarning,
            ImportWarning,
            ResourceWarning,
        ):
            warnings.simplefilter("ignore", hidden)
        warnings.showwarning = show
        yield


def call(capfd: Any, argv: list[str]) -> Outcome:
    """Run `kd` in this process."""
    capfd.readouterr()
    with python_warnings():
        code = main(argv)
    return Outcome(code, *capfd.readouterr())


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment for another one, one thread each; None removes a variable."""
    merged = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return {name: value for name, value in merged.items() if value is not None}


def spawn(
    argv: list[str], folder: Path, **changes: str | None
) -> subprocess.Popen[str]:
    """Start `kd` in a process of its own, which interrupts reach even where this one, in the background, ignores them."""
    return subprocess.Popen(
        [sys.executable, "-m", "kd_lightning", *argv],
        cwd=folder,
        env=environment(**changes),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 120) -> Outcome:
    """Wait for a process of `spawn`; one that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err)
