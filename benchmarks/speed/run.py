"""All speed comparisons, one command: `python benchmarks/speed/run.py --data-root DIR`.

Peers are optional: `pip install torchdistill` for those rows. Each comparison runs its sides in turn, at least seven rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault(
    "TORCHINDUCTOR_COMPILE_THREADS", "1"
)  # no processes whose time would pass for a disturbance

from measure import Timings, interleave
from rich.console import Console
from rich.table import Table
from workloads import SGD, at_precision, by_hand, distilled, epoch_seconds, plain

from kd_lightning.data import ImageDataModule, Images, Jitter, MNISTDataModule
from kd_lightning.models import MLP, CIFARResNet
from kd_lightning.runs.build import quiet
from kd_lightning.runs.compile import CompileNetworks
from kd_lightning.runs.fold import FoldTeachers
from kd_lightning.runs.folder import commit, hardware, write_json
from kd_lightning.runs.lean import keep_memory
from kd_lightning.teachers import CachedTeacher, ModelTeacher, cache_teacher

Rows = list[dict[str, Any]]


class Noise(ImageDataModule):
    """CIFAR's shape: what a step costs does not depend on what the images show."""

    name, classes, mean, std = "noise", tuple("0123456789"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def load(self, split: str) -> Images:
        return Images(
            torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8),
            torch.randint(0, 10, (4096,)),
        )


def ratio(rows: Rows, name: str, timings: Timings, a: str, b: str, asked: str) -> None:
    middle, low, high = timings.ratio(a, b)
    sides = {side: 1000 * timings.median(side) for side in (a, b)}
    rows.append(
        {
            "workload": name,
            "asked": asked,
            "value": middle,
            "low": low,
            "high": high,
            "unit": "ratio",
            "ms": sides,
        }
    )
    rows[-1] |= {"rounds": len(timings.seconds[a]), "dropped": timings.dropped}


def mlps(options: argparse.Namespace, rows: Rows) -> None:
    """MNIST, 1200-1200 to 800-800, batch 128."""
    data = MNISTDataModule(root=options.data_root, batch_size=128, validation=0.0)
    student = partial(MLP, [800, 800], input_shape=[1, 28, 28], num_classes=10)
    teacher = MLP([1200, 1200], input_shape=[1, 28, 28], num_classes=10)
    n = options.steps
    with tempfile.TemporaryDirectory() as folder:
        cache_teacher(ModelTeacher(network=teacher), data, folder)
        cached = CachedTeacher(folder)
        workloads = {
            "by hand": partial(by_hand, student, teacher, data, n),
            "live": partial(distilled, student, teacher, data, n),
            "cached": partial(distilled, student, cached, data, n),
            "live, plain SGD": partial(distilled, student, teacher, data, n, optimizer=SGD),
            "cached, plain SGD": partial(distilled, student, cached, data, n, optimizer=SGD),
            "student alone": partial(plain, student, data, n),
            "by hand, cached": partial(by_hand, student, teacher, data, n, cached=True),
        }
        workloads["live, medium"] = partial(at_precision, "medium", workloads["live"])
        workloads["cached, medium"] = partial(at_precision, "medium", workloads["cached"])
        workloads["live, compiled"] = partial(
            distilled, student, teacher, data, n, switch=CompileNetworks()
        )
        if peers := importlib.util.find_spec("torchdistill"):
            from peers import naive_lightning, torchdistill

            root = str(data.root)
            workloads["torchdistill"] = partial(torchdistill, student, teacher, root, 128, n // 3)
            workloads["naive Lightning"] = partial(
                naive_lightning, student, teacher, root, 128, n // 3
            )
        timings = interleave(workloads, options.rounds)
    ratio(rows, "MNIST MLP, live teacher: ours / floor", timings, "live", "by hand", "<= 1.05")
    ratio(rows, "the same, plain SGD on both sides", timings, "live, plain SGD", "by hand", "")
    ratio(
        rows,
        "cached teacher, ours / floor with live teacher",
        timings,
        "cached",
        "by hand",
        "<= 0.62",
    )
    ratio(
        rows,
        "the same, plain SGD on both sides (cached)",
        timings,
        "cached, plain SGD",
        "by hand",
        "",
    )
    ratio(
        rows,
        "cached soft targets by hand / floor with live teacher",
        timings,
        "by hand, cached",
        "by hand",
        "",
    )
    ratio(
        rows,
        "cached distillation / plain student, both ours",
        timings,
        "cached",
        "student alone",
        "<= 1.05",
    )
    name = "the switch SGD(fused=True), {0} teacher: with / without"
    ratio(rows, name.format("live"), timings, "live", "live, plain SGD", "")
    ratio(rows, name.format("cached"), timings, "cached", "cached, plain SGD", "")
    name = "the switch --matmul_precision=medium, {0} teacher: with / without"
    ratio(rows, name.format("live"), timings, "live, medium", "live", "")
    ratio(rows, name.format("cached"), timings, "cached, medium", "cached", "")
    name = "the switch CompileNetworks, MLP, live teacher: with / without (its first three steps left out)"
    ratio(rows, name, timings, "live, compiled", "live", "")
    if peers:
        ratio(rows, "live teacher: torchdistill / ours", timings, "torchdistill", "live", ">= 2.5")
        ratio(
            rows, "cached teacher: torchdistill / ours", timings, "torchdistill", "cached", ">= 4"
        )
        ratio(rows, "live teacher: torchdistill / floor", timings, "torchdistill", "by hand", "")
        ratio(
            rows,
            "cached teacher: torchdistill / by hand",
            timings,
            "torchdistill",
            "by hand, cached",
            "",
        )
        name = "{0} teacher: torchdistill / ours with --matmul_precision=medium"
        for side in ("live", "cached"):
            ratio(rows, name.format(side), timings, "torchdistill", f"{side}, medium", "")
        ratio(rows, "live teacher: naive Lightning / ours", timings, "naive Lightning", "live", "")


def resnets(options: argparse.Namespace, rows: Rows) -> None:
    """CIFAR's shape, resnet56 to resnet20, batch 64."""
    data = Noise(batch_size=64, validation=0.0)
    student = partial(CIFARResNet, 20, input_shape=[3, 32, 32], num_classes=10)
    teacher = CIFARResNet(56, input_shape=[3, 32, 32], num_classes=10)
    last = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
    n = max(6, options.steps // 20)
    workloads = {
        "by hand": partial(by_hand, student, teacher, data, n),
        "by hand, channels last": partial(
            by_hand, lambda: student().to(memory_format=torch.channels_last), last, data, n
        ),
        "channels first": partial(distilled, student, teacher, data, n),
        "channels last": partial(distilled, student, teacher, data, n, channels_last=True),
        "folded": partial(
            distilled, student, teacher, data, n, channels_last=True, switch=FoldTeachers()
        ),
        "compiled": partial(distilled, student, teacher, data, n, switch=CompileNetworks()),
        "bf16": partial(
            distilled, student, teacher, data, n, channels_last=True, precision="bf16-mixed"
        ),
    }
    timings = interleave(workloads, options.rounds)
    name = "resnet56 -> resnet20: {0} / floor, channels first"
    ratio(rows, name.format("ours, channels last"), timings, "channels last", "by hand", "<= 0.90")
    ratio(
        rows,
        name.format("ours, channels last, FoldTeachers"),
        timings,
        "folded",
        "by hand",
        "<= 0.90",
    )
    ratio(rows, name.format("ours, channels first"), timings, "channels first", "by hand", "")
    ratio(
        rows,
        name.format("by hand, channels last"),
        timings,
        "by hand, channels last",
        "by hand",
        "",
    )
    ratio(
        rows,
        "the switch channels_last, resnet56 -> resnet20: with / without",
        timings,
        "channels last",
        "channels first",
        "",
    )
    name = "the switch FoldTeachers, resnet56 -> resnet20, channels last: with / without"
    ratio(rows, name, timings, "folded", "channels last", "")
    name = "the switch --trainer.precision=bf16-mixed, resnet56 -> resnet20, channels last: with / without"
    ratio(rows, name, timings, "bf16", "channels last", "")
    name = "the switch CompileNetworks, resnet56 -> resnet20, channels first: with / without (its first three steps left out)"
    ratio(rows, name, timings, "compiled", "channels first", "")


def tiny(options: argparse.Namespace, rows: Rows) -> None:
    """A model so small that overhead is all there is."""
    data = MNISTDataModule(root=options.data_root, batch_size=32, validation=0.0)
    student = partial(MLP, [16], input_shape=[1, 28, 28], num_classes=10)
    teacher = MLP([16], input_shape=[1, 28, 28], num_classes=10)
    workloads = {
        "by hand": partial(by_hand, student, teacher, data, 1500),
        "live": partial(distilled, student, teacher, data, 1500),
    }
    timings = interleave(workloads, options.rounds)
    added = [
        1000 * (a - b)
        for a, b in zip(timings.seconds["live"], timings.seconds["by hand"], strict=True)
    ]
    rows.append(
        {
            "workload": "tiny model: added a step over the floor",
            "asked": "<= 0.7 ms",
            "value": sorted(added)[len(added) // 2],
        }
        | {
            "low": min(added),
            "high": max(added),
            "unit": "ms",
            "rounds": len(added),
            "dropped": timings.dropped,
        }
    )


def inputs(options: argparse.Namespace, rows: Rows) -> None:
    """Augmented MNIST images a second, as they reach the module: ten epochs a round."""
    epochs = itertools.count()

    def served(batch: int) -> float:
        data = MNISTDataModule(
            root=options.data_root, batch_size=batch, validation=0.0, augment=[Jitter(2)]
        )
        seconds = epoch_seconds(data, itertools.islice(epochs, 10))
        return sum(seconds) / (len(seconds) * len(data.source("train")))

    sizes = {str(batch): partial(served, batch) for batch in (128, 1024)}
    timings = interleave(sizes, options.rounds)
    for batch in sizes:
        speeds = sorted(1e-6 / seconds for seconds in timings.seconds[batch])
        rows.append(
            {
                "workload": f"input, jittered MNIST, batch {batch}",
                "asked": ">= 1 million/s",
                "value": speeds[len(speeds) // 2],
            }
            | {
                "low": speeds[0],
                "high": speeds[-1],
                "unit": "million/s",
                "rounds": len(speeds),
                "dropped": timings.dropped,
            }
        )


def commands(options: argparse.Namespace, rows: Rows) -> None:
    """What a user waits for."""
    kd = [sys.executable, "-m", "kd_lightning"]

    def seconds(command: list[str]) -> float:
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started

    for words in (["--help"], ["list", "methods"]):
        timings = interleave({"command": partial(seconds, [*kd, *words])}, options.rounds)
        found = sorted(timings.seconds["command"])
        rows.append(
            {
                "workload": f"kd {' '.join(words)}",
                "asked": "< 1 s",
                "value": found[len(found) // 2],
                "low": found[0],
            }
            | {"high": found[-1], "unit": "s", "rounds": len(found), "dropped": timings.dropped}
        )
    root = Path(__file__).parent.parent.parent / "configs"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        names = ("trainer", "data/digits", "teachers/digits_mlp", "loggers/csv")
        configs = [part for name in names for part in ("-c", str(root / f"{name}.yaml"))]
        first = [
            *kd,
            "fit",
            *configs,
            "--trainer.max_steps=1",
            "--trainer.limit_val_batches=0",
            f"--run.root={folder}",
        ]
        work = {
            "kd fit": partial(seconds, first),
            "import": partial(seconds, [sys.executable, "-c", "import lightning"]),
        }
        timings = interleave(work, options.rounds)
    ratio(
        rows,
        "kd fit to the first step on digits / import lightning",
        timings,
        "kd fit",
        "import",
        "<= 1.2",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    quiet()
    keep_memory()  # as `kd fit` does; it serves both sides
    torch.set_num_threads(options.threads)
    started, rows = time.monotonic(), Rows()
    for part in (commands, inputs, mlps, tiny, resnets):
        part(options, rows)
        content = {
            "rows": rows,
            "commit": commit(),
            "hardware": hardware(),
            "threads": options.threads,
        }
        write_json(
            options.output,
            content
            | {"wall_time_s": round(time.monotonic() - started, 1), "torch": torch.__version__},
        )
    table = Table(
        title=f"{options.threads} CPU threads, medians with 95% intervals of paired ratios (or least and most)"
    )
    for heading in ("workload", "asked", "measured", "interval"):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for row in rows:
        table.add_row(
            row["workload"],
            row["asked"],
            f"{row['value']:.3f} {row['unit']}",
            f"[{row['low']:.3f}, {row['high']:.3f}]",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
