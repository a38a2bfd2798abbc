"""The comparisons that `run.py` measures; each returns its rows."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from report import Row, ratio_row, value_row
from timings import interleave
from torch import nn
from workloads import SGD, Noise, at_precision, by_hand, distilled, epoch_seconds, plain

from kd_lightning.data import Jitter, MNISTDataModule
from kd_lightning.models import MLP, CIFARResNet
from kd_lightning.runs.compile import CompileNetworks
from kd_lightning.runs.fold import FoldTeachers
from kd_lightning.teachers import CachedTeacher, ModelTeacher, cache_teacher

Workloads = dict[str, Callable[[], float]]
Comparison = tuple[str, str, str, str]
"""Name of the row, workload in the numerator, workload in the denominator, target."""

CONFIGS = Path(__file__).parent.parent.parent / "configs"
TINY_STEPS = 1500

MLP_COMPARISONS: tuple[Comparison, ...] = (
    ("MNIST MLP, live teacher: ours / floor", "live", "by hand", "<= 1.05"),
    ("the same, plain SGD on both sides", "live, plain SGD", "by hand", ""),
    ("cached teacher, ours / floor with live teacher", "cached", "by hand", "<= 0.62"),
    ("the same, plain SGD on both sides (cached)", "cached, plain SGD", "by hand", ""),
    (
        "cached soft targets by hand / floor with live teacher",
        "by hand, cached",
        "by hand",
        "",
    ),
    (
        "cached distillation / plain student, both ours",
        "cached",
        "student alone",
        "<= 1.05",
    ),
    (
        "the switch SGD(fused=True), live teacher: with / without",
        "live",
        "live, plain SGD",
        "",
    ),
    (
        "the switch SGD(fused=True), cached teacher: with / without",
        "cached",
        "cached, plain SGD",
        "",
    ),
    (
        "the switch --matmul_precision=medium, live teacher: with / without",
        "live, medium",
        "live",
        "",
    ),
    (
        "the switch --matmul_precision=medium, cached teacher: with / without",
        "cached, medium",
        "cached",
        "",
    ),
    (
        "the switch CompileNetworks, MLP, live teacher: with / without "
        "(its first three steps left out)",
        "live, compiled",
        "live",
        "",
    ),
)

PEER_COMPARISONS: tuple[Comparison, ...] = (
    ("live teacher: torchdistill / ours", "torchdistill", "live", ">= 2.5"),
    ("cached teacher: torchdistill / ours", "torchdistill", "cached", ">= 4"),
    ("live teacher: torchdistill / floor", "torchdistill", "by hand", ""),
    ("cached teacher: torchdistill / by hand", "torchdistill", "by hand, cached", ""),
    (
        "live teacher: torchdistill / ours with --matmul_precision=medium",
        "torchdistill",
        "live, medium",
        "",
    ),
    (
        "cached teacher: torchdistill / ours with --matmul_precision=medium",
        "torchdistill",
        "cached, medium",
        "",
    ),
    ("live teacher: naive Lightning / ours", "naive Lightning", "live", ""),
)

RESNET_COMPARISONS: tuple[Comparison, ...] = (
    (
        "resnet56 -> resnet20: ours, channels last / floor, channels first",
        "channels last",
        "by hand",
        "<= 0.90",
    ),
    (
        "resnet56 -> resnet20: ours, channels last, FoldTeachers / floor, channels first",
        "folded",
        "by hand",
        "<= 0.90",
    ),
    (
        "resnet56 -> resnet20: ours, channels first / floor, channels first",
        "channels first",
        "by hand",
        "",
    ),
    (
        "resnet56 -> resnet20: by hand, channels last / floor, channels first",
        "by hand, channels last",
        "by hand",
        "",
    ),
    (
        "the switch channels_last, resnet56 -> resnet20: with / without",
        "channels last",
        "channels first",
        "",
    ),
    (
        "the switch FoldTeachers, resnet56 -> resnet20, channels last: with / without",
        "folded",
        "channels last",
        "",
    ),
    (
        "the switch --trainer.precision=bf16-mixed, resnet56 -> resnet20, channels last: "
        "with / without",
        "bf16",
        "channels last",
        "",
    ),
    (
        "the switch CompileNetworks, resnet56 -> resnet20, channels first: with / without "
        "(its first three steps left out)",
        "compiled",
        "channels first",
        "",
    ),
)


def commands(options: argparse.Namespace) -> list[Row]:
    """The time a user waits for a command."""
    kd = [sys.executable, "-m", "kd_lightning"]
    rows = []
    for arguments in (["--help"], ["list", "methods"]):
        workload = partial(_command_seconds, [*kd, *arguments])
        timings = interleave({"command": workload}, options.rounds)
        seconds = timings.seconds["command"]
        name = f"kd {' '.join(arguments)}"
        rows.append(value_row(name, seconds, "s", timings.dropped, "< 1 s"))
    fit = [*kd, "fit"]
    for name in ("trainer", "data/digits", "teachers/digits_mlp", "loggers/csv"):
        fit += ["-c", str(CONFIGS / f"{name}.yaml")]
    fit += ["--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    # Nearly all of the time is spent on imports, so Lightning's own import is the yardstick.
    with tempfile.TemporaryDirectory() as folder:
        workloads: Workloads = {
            "kd fit": partial(_command_seconds, [*fit, f"--run.root={folder}"]),
            "import": partial(
                _command_seconds, [sys.executable, "-c", "import lightning"]
            ),
        }
        timings = interleave(workloads, options.rounds)
    name = "kd fit to the first step on digits / import lightning"
    rows.append(ratio_row(timings, name, "kd fit", "import", "<= 1.2"))
    return rows


def _command_seconds(command: list[str]) -> float:
    """The seconds that a command takes; its output is discarded."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def inputs(options: argparse.Namespace) -> list[Row]:
    """Augmented MNIST images per second as they reach the module, ten epochs per round."""
    # Every call takes new epochs, because the augmentation differs per epoch.
    epochs = itertools.count()

    def seconds_per_image(batch_size: int) -> float:
        data = MNISTDataModule(
            root=options.data_root,
            batch_size=batch_size,
            validation=0.0,
            augment=[Jitter(2)],
        )
        seconds = epoch_seconds(data, itertools.islice(epochs, 10))
        images = len(seconds) * len(data.source("train"))
        return sum(seconds) / images

    workloads: Workloads = {
        str(batch_size): partial(seconds_per_image, batch_size)
        for batch_size in (128, 1024)
    }
    timings = interleave(workloads, options.rounds)
    rows = []
    for batch_size in workloads:
        speeds = [1e-6 / seconds for seconds in timings.seconds[batch_size]]
        name = f"input, jittered MNIST, batch {batch_size}"
        rows.append(
            value_row(name, speeds, "million/s", timings.dropped, ">= 1 million/s")
        )
    return rows


def mlps(options: argparse.Namespace) -> list[Row]:
    """MNIST, MLP 1200-1200 to 800-800, batch size 128."""
    data = MNISTDataModule(root=options.data_root, batch_size=128, validation=0.0)
    student = partial(MLP, [800, 800], input_shape=[1, 28, 28], num_classes=10)
    teacher = MLP([1200, 1200], input_shape=[1, 28, 28], num_classes=10)
    steps = options.steps
    comparisons = MLP_COMPARISONS
    with tempfile.TemporaryDirectory() as folder:
        # The teacher has random weights: the time of a step does not depend on them.
        cache_teacher(ModelTeacher(network=teacher), data, folder)
        cached = CachedTeacher(folder)
        live_run = partial(distilled, student, teacher, data, steps)
        cached_run = partial(distilled, student, cached, data, steps)
        workloads: Workloads = {
            "by hand": partial(by_hand, student, teacher, data, steps),
            "live": live_run,
            "cached": cached_run,
            "live, plain SGD": partial(live_run, optimizer=SGD),
            "cached, plain SGD": partial(cached_run, optimizer=SGD),
            "student alone": partial(plain, student, data, steps),
            "by hand, cached": partial(
                by_hand, student, teacher, data, steps, cached=True
            ),
            "live, medium": partial(at_precision, "medium", live_run),
            "cached, medium": partial(at_precision, "medium", cached_run),
            "live, compiled": partial(live_run, switch=CompileNetworks()),
        }
        if importlib.util.find_spec("torchdistill"):
            # Fewer steps, because both peers are several times slower.
            workloads |= _peers(student, teacher, str(data.root), steps // 3)
            comparisons += PEER_COMPARISONS
        timings = interleave(workloads, options.rounds)
    return [ratio_row(timings, *comparison) for comparison in comparisons]


def _peers(
    student: Callable[[], nn.Module], teacher: nn.Module, root: str, steps: int
) -> Workloads:
    """The same training by other libraries."""
    # Imported late, because torchdistill is optional.
    from peers import naive_lightning, torchdistill

    return {
        "torchdistill": partial(torchdistill, student, teacher, root, 128, steps),
        "naive Lightning": partial(naive_lightning, student, teacher, root, 128, steps),
    }


def tiny(options: argparse.Namespace) -> list[Row]:
    """The overhead per step, measured on a model that computes almost nothing."""
    # So little computation that what remains is the framework's own work.
    data = MNISTDataModule(root=options.data_root, batch_size=32, validation=0.0)
    student = partial(MLP, [16], input_shape=[1, 28, 28], num_classes=10)
    teacher = MLP([16], input_shape=[1, 28, 28], num_classes=10)
    workloads: Workloads = {
        "by hand": partial(by_hand, student, teacher, data, TINY_STEPS),
        "live": partial(distilled, student, teacher, data, TINY_STEPS),
    }
    timings = interleave(workloads, options.rounds)
    # A difference within each round: a slow phase of the machine affects both sides.
    pairs = zip(timings.seconds["live"], timings.seconds["by hand"], strict=True)
    added = [1000 * (live - floor) for live, floor in pairs]
    name = "tiny model: added a step over the floor"
    return [value_row(name, added, "ms", timings.dropped, "<= 0.7 ms")]


def resnets(options: argparse.Namespace) -> list[Row]:
    """Images of CIFAR's shape, resnet56 to resnet20, batch size 64."""
    data = Noise(batch_size=64, validation=0.0)
    student = partial(CIFARResNet, 20, input_shape=[3, 32, 32], num_classes=10)
    teacher = CIFARResNet(56, input_shape=[3, 32, 32], num_classes=10)
    # `to` changes a network in place, and other workloads use the teacher as it is.
    teacher_last = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
    # A step takes much longer than one of the MLPs.
    steps = max(6, options.steps // 20)

    def student_last() -> nn.Module:
        return student().to(memory_format=torch.channels_last)

    first_run = partial(distilled, student, teacher, data, steps)
    last_run = partial(first_run, channels_last=True)
    workloads: Workloads = {
        "by hand": partial(by_hand, student, teacher, data, steps),
        "by hand, channels last": partial(
            by_hand, student_last, teacher_last, data, steps
        ),
        "channels first": first_run,
        "channels last": last_run,
        "folded": partial(last_run, switch=FoldTeachers()),
        "compiled": partial(first_run, switch=CompileNetworks()),
        "bf16": partial(last_run, precision="bf16-mixed"),
    }
    timings = interleave(workloads, options.rounds)
    return [ratio_row(timings, *comparison) for comparison in RESNET_COMPARISONS]
