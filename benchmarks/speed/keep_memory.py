"""Measure the gain of keeping freed memory (`kd_lightning.runs.memory.keep_memory`).

Run `python benchmarks/speed/keep_memory.py --data-root DIR`. The allocator setting holds for a
whole process, so each round starts two new processes, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

# The benchmarks are scripts, not a package, and are run from any folder.
sys.path.insert(0, str(Path(__file__).parent))

from timings import Timings
from workloads import Noise, distilled, epoch_seconds

from kd_lightning.data import Jitter, MNISTDataModule
from kd_lightning.models import CIFARResNet
from kd_lightning.runs.folder import commit, hardware, write_json
from kd_lightning.runs.memory import keep_memory
from kd_lightning.runs.quiet import quiet

KEPT = "kept"
GIVEN_BACK = "given back"
THREADS = 2


def input_seconds(root: str | None, batch_size: int) -> float:
    """Seconds per epoch of jittered MNIST, the median of seven epochs."""
    data = MNISTDataModule(
        root=root, batch_size=batch_size, validation=0.0, augment=[Jitter(2)]
    )
    # The first two epochs warm up.
    measured = epoch_seconds(data, range(9))[2:]
    return statistics.median(measured)


def measure(root: str | None, keep: bool) -> dict[str, float]:
    """Measure the workloads in this process.

    Args:
        root: folder of the data sets.
        keep: whether the allocator keeps freed memory.

    Returns:
        Seconds of each workload, and the peak memory in MB.
    """
    quiet()
    if keep and not keep_memory():
        raise SystemExit("the allocator of this system cannot be set to keep memory")
    torch.set_num_threads(THREADS)
    results = {}
    for batch_size in (128, 1024):
        results[f"input, batch {batch_size}"] = input_seconds(root, batch_size)
    student = partial(CIFARResNet, 20, input_shape=[3, 32, 32], num_classes=10)
    teacher = CIFARResNet(56, input_shape=[3, 32, 32], num_classes=10)
    data = Noise(batch_size=64, validation=0.0)
    step = partial(distilled, student, teacher, data, 12, channels_last=True)
    # The first two runs warm up.
    step()
    step()
    results["resnet56 -> resnet20, channels last"] = step()
    peak_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results["peak memory, MB"] = peak_kilobytes / 1024
    return results


def measure_in_child(side: str, root: str | None) -> dict[str, float]:
    """Measure one side in a new process."""
    command = [sys.executable, __file__, "--child", side]
    if root:
        command += ["--data-root", root]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    # Lightning prints advice before the results.
    last_line = process.stdout.splitlines()[-1]
    results: dict[str, float] = json.loads(last_line)
    return results


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=9, help="rounds to measure")
    parser.add_argument("--child", choices=[KEPT, GIVEN_BACK], help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "keep_memory.json"
    )
    return parser.parse_args()


def main() -> None:
    """Measure both sides in turn, print and write the results."""
    options = parse_options()
    root = options.data_root or os.environ.get("KD_DATA_ROOT")
    if options.child:
        measured = measure(root, options.child == KEPT)
        print(json.dumps(measured))
        return
    results: dict[str, list[dict[str, float]]] = {KEPT: [], GIVEN_BACK: []}
    for _ in range(options.rounds):
        for side, rounds in results.items():
            rounds.append(measure_in_child(side, root))
            print(side, rounds[-1], flush=True)
    rows = []
    for name in results[KEPT][0]:
        values = {}
        for side, rounds in results.items():
            values[side] = [results_of_round[name] for results_of_round in rounds]
        # Pairs from the same round cancel slow phases of the machine.
        timings = Timings(values, dropped=0)
        median, low, high = timings.ratio(KEPT, GIVEN_BACK)
        medians = {side: timings.median(side) for side in results}
        row = {
            "workload": name,
            "value": median,
            "low": low,
            "high": high,
            "medians": medians,
        }
        rows.append(row)
        ratio = f"{median:.3f} [{low:.3f}, {high:.3f}]"
        print(f"{name}: {KEPT} / {GIVEN_BACK} {ratio}, {medians}")
    content = {
        "rows": rows,
        "rounds": options.rounds,
        "threads": THREADS,
        "commit": commit(),
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    write_json(options.output, content)


if __name__ == "__main__":
    main()
