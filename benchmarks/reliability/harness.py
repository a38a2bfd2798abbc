"""Runs `kd` commands in forked children of one process that has imported everything already.

A fresh process per command would spend seconds on imports. A fork takes milliseconds, and has a
time limit, a memory limit, a folder and standard streams of its own, so that hundreds of commands
that hang, exhaust the memory or crash can be tried in minutes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["refused", "accepted", "traceback", "hang", "crash"]

GIB = 2**30
TRACEBACK_MARKS = (
    "Traceback (most recent call last)",
    "internal error in kd_lightning",
    " raised ",
)
"""What standard error holds after an error that no one line explains."""


@dataclass(frozen=True)
class Finished:
    """What one command did.

    Attributes:
        code: its exit code; negative is the signal that ended it.
        out: its standard output.
        err: its standard error.
        seconds: how long it took.
        peak_bytes: the most memory that it held, without what it shares with the parent.
        timed_out: whether the time limit ended it.
    """

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int
    timed_out: bool

    @property
    def outcome(self) -> Outcome:
        """How the command ended.

        "refused" is exit code 2 with exactly one line on standard error, "accepted" is exit
        code 0, "crash" is any other end.
        """
        if self.timed_out:
            return "hang"
        if any(mark in self.err for mark in TRACEBACK_MARKS):
            return "traceback"
        if self.code == 0:
            return "accepted"
        one_line = self.err.count("\n") == 1 and self.err.startswith("kd: ")
        return "refused" if self.code == 2 and one_line else "crash"


def import_everything() -> None:
    """Import in the parent what the commands need, so that the children start at once."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")
    import importlib

    modules = (
        "torch._dynamo",
        "kd_lightning.runs.launch",
        "kd_lightning.runs.command",
        "kd_lightning.runs.cache_command",
        "kd_lightning.experiments.command",
        "kd_lightning.experiments.runner",
        "kd_lightning.compare.command",
        "kd_lightning.data",
        "kd_lightning.losses",
        "kd_lightning.models",
        "kd_lightning.teachers",
        "torchvision",
    )
    for module in modules:
        importlib.import_module(module)
    import torch

    # A child of a process with running threads would wait for threads that it does not have.
    torch.set_num_threads(1)


def start(command: Callable[[], int], folder: Path, memory_bytes: int = 0) -> int:
    """Fork a child that runs a command in a folder; returns its process id.

    The child writes its streams to `stdout` and `stderr` in the folder and leads a process group
    of its own, so that `os.killpg` also ends its children.

    Args:
        command: returns the exit code.
        folder: becomes the current folder of the child; made if missing.
        memory_bytes: address space that the child may add to the parent's; 0 is no limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process > 0:
        return process
    # Nothing of the parent may run on in the child, whatever happens here.
    code = 1
    try:
        os.setpgid(0, 0)
        _redirect(folder)
        os.chdir(folder)
        if memory_bytes:
            limit = _address_space() + memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = command()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(folder: Path) -> None:
    """Send the standard streams of this process to files."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
    # Tools such as pytest may have put other objects in place of the streams. The process ends
    # without closing them.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def finish(process: int, folder: Path, seconds: float) -> Finished:
    """Wait for a child and read its streams; a child that takes too long is killed.

    Args:
        process: as `start` returned it.
        folder: of the child.
        seconds: its time limit.
    """
    began = time.monotonic()
    timed_out = False
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > seconds:
            timed_out = True
            kill_group(process)
            _, status, usage = os.wait4(process, 0)
            break
        time.sleep(0.005)
    taken = time.monotonic() - began
    # Children that the command left behind.
    kill_group(process)
    shared = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Finished(
        code=os.waitstatus_to_exitcode(status),
        out=(folder / "stdout").read_text(errors="replace"),
        err=(folder / "stderr").read_text(errors="replace"),
        seconds=taken,
        peak_bytes=1024 * max(0, usage.ru_maxrss - shared),
        timed_out=timed_out,
    )


def kill_group(process: int) -> None:
    """End a child and all processes that it started, at once and without warning."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def kd(arguments: list[str]) -> Callable[[], int]:
    """The command `kd ARGUMENTS`."""

    def command() -> int:
        from kd_lightning.cli import main, use_current_folder

        use_current_folder()
        return main(arguments)

    return command


def run(
    arguments: list[str],
    folder: Path,
    seconds: float = 60.0,
    memory_bytes: int = 4 * GIB,
) -> Finished:
    """Run `kd ARGUMENTS` in a child and wait for it.

    Args:
        arguments: without the word `kd`.
        folder: the child's current folder.
        seconds: time limit.
        memory_bytes: see `start`.
    """
    return finish(start(kd(arguments), folder, memory_bytes), folder, seconds)
