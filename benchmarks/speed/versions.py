"""Compare the speed of two checkouts: both train at the same time, a few steps each in turn.

Run `python benchmarks/speed/versions.py OLD NEW --teachers DIR --data-root DIR` where no
`kd_lightning` is installed, or where it is installed in editable mode. The ratio of each workload is
new / old. DIR holds the runs `mnist`, `digits` and `resnet` of configs/teachers/mnist_mlp1200.yaml,
digits_mlp.yaml and cifar_resnet56.yaml, trained with the old checkout, and the caches `cache-old` and
`cache-new` that `kd cache --views 1` of each checkout made of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

# The benchmarks are scripts, not a package, and are run from any folder.
sys.path.insert(0, str(Path(__file__).parent))

from report import Row, print_table, ratio_row
from timings import Timings

THREADS = 2
COMMON = [
    "-c=configs/trainer.yaml",
    "-c=configs/loggers/csv.yaml",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--run.wandb=off",
]
DISTILLED = ["-c=configs/methods/kd.yaml", "--trainer.max_epochs=1000"]


def workloads(teachers: Path) -> dict[str, tuple[list[str], int]]:
    """The arguments of `kd fit` and the number of steps of a turn, for each workload.

    Args:
        teachers: folder of the teachers' run folders, and of a cache for either checkout.
    """

    def checkpoint(name: str) -> str:
        return f"--model.teacher.checkpoint={teachers / name}/checkpoints/last.ckpt"

    mnist = [
        "-c=configs/data/mnist.yaml",
        "-c=configs/pairs/mlp1200_mlp800.yaml",
        "--data.validation=0.0",
    ]
    cached = [
        "--model.teacher=kd_lightning.teachers.CachedTeacher",
        f"--model.teacher.path={teachers}/cache-SIDE",
    ]
    resnets = [
        "-c=configs/data/cifar10_jpeg.yaml",
        "-c=configs/pairs/resnet56_resnet20.yaml",
        "--trainer.limit_val_batches=0",
    ]
    digits = [
        "-c=configs/data/digits.yaml",
        "-c=configs/pairs/digits_mlp256_mlp16.yaml",
    ]
    return {
        "MLP, live teacher": ([*mnist, checkpoint("mnist")], 100),
        "MLP, cached teacher": ([*mnist, *cached], 100),
        "resnet56 -> resnet20": ([*resnets, checkpoint("resnet")], 6),
        # 22 steps are an epoch, whose validation is a part of each turn.
        "digits, tiny MLPs": ([*digits, checkpoint("digits")], 66),
    }


class Side:
    """A `kd fit` of one checkout that trains in turns.

    Args:
        checkout: folder of the repository.
        arguments: arguments of `kd fit`.
        steps: steps of one turn.
        data_root: folder of the data sets.
    """

    def __init__(
        self, checkout: Path, arguments: list[str], steps: int, data_root: str
    ) -> None:
        turn_reader, self._turns = os.pipe()
        self._times, time_writer = os.pipe()
        self._folder = tempfile.mkdtemp()
        scripts = Path(__file__).resolve().parent
        environment = {
            **os.environ,
            "PYTHONPATH": f"{checkout}{os.pathsep}{scripts}",
            "OMP_NUM_THREADS": str(THREADS),
            "KD_DATA_ROOT": data_root,
        }
        turns = {"reader": turn_reader, "writer": time_writer, "steps": steps}
        callback = {"class_path": "turns.Turns", "init_args": turns}
        command = [sys.executable, "-m", "kd_lightning", "fit", *COMMON, *DISTILLED]
        command += arguments
        command += [f"--trainer.callbacks+={json.dumps(callback)}"]
        command += [f"--run.dir={self._folder}/run"]
        self._process = subprocess.Popen(
            command,
            cwd=checkout,
            env=environment,
            pass_fds=(turn_reader, time_writer),
            stdout=subprocess.DEVNULL,
        )
        os.close(turn_reader)
        os.close(time_writer)

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process and remove its run folder."""
        os.close(self._turns)
        self._process.wait()
        os.close(self._times)
        shutil.rmtree(self._folder)

    def turn(self) -> float:
        """Train for one turn.

        Returns:
            Seconds per step.

        Raises:
            SystemExit: if the run ended.
        """
        os.write(self._turns, b".")
        line = os.read(self._times, 64)
        if not line:
            raise SystemExit("a run ended early; its message is above")
        return float(line)


def compare(
    old: Path,
    new: Path,
    name: str,
    arguments: list[str],
    steps: int,
    options: argparse.Namespace,
) -> Row:
    """Time one workload in both checkouts.

    Args:
        old: the checkout in the denominator.
        new: the checkout in the numerator.
        name: name of the workload.
        arguments: arguments of `kd fit`, with SIDE where the checkouts differ.
        steps: steps of one turn.
        options: the arguments of this script.
    """
    seconds: dict[str, list[float]] = {"new": [], "old": []}

    def of(side: str) -> list[str]:
        return [argument.replace("SIDE", side) for argument in arguments]

    # What the newer code does by default before it trains, and what the older always did.
    same = ["--run.report=false", "--run.keep_memory=true"]
    with (
        Side(old, of("old"), steps, options.data_root) as old_side,
        Side(new, [*of("new"), *same], steps, options.data_root) as new_side,
    ):
        sides = {"old": old_side, "new": new_side}
        # The first turns choose kernels and fill caches.
        for side in (old_side, new_side):
            side.turn()
            side.turn()
        for index in range(options.rounds):
            # The order alternates, so that neither side always follows the other.
            order = ("old", "new") if index % 2 == 0 else ("new", "old")
            for key in order:
                seconds[key].append(sides[key].turn())
    return ratio_row(Timings(seconds, 0), name, "new", "old", "<= 1.03")


def main() -> None:
    """Compare all workloads, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--data-root", default=os.environ.get("KD_DATA_ROOT", "data"))
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--only", help="measure the workloads with this in their name")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for name, (arguments, steps) in workloads(options.teachers).items():
        if options.only is not None and options.only not in name:
            continue
        row = compare(
            options.old.resolve(),
            options.new.resolve(),
            name,
            arguments,
            steps,
            options,
        )
        rows.append(row)
        print_table([row], THREADS)
    print_table(rows, THREADS)
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
