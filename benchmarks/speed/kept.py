"""What keeping freed memory saves (`kd_lightning.runs.lean.keep_memory`): `python benchmarks/speed/kept.py --data-root DIR`.

What the allocator was told holds for a process, so each round is two new ones, one after the other.
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

sys.path.insert(0, str(Path(__file__).parent))
from measure import Timings
from run import Noise
from workloads import distilled, epoch_seconds

from kd_lightning.data import Jitter, MNISTDataModule
from kd_lightning.models import CIFARResNet
from kd_lightning.runs.build import quiet
from kd_lightning.runs.folder import commit, hardware, write_json
from kd_lightning.runs.lean import keep_memory


def inputs(root: str | None, batch: int) -> float:
    """Seconds an epoch of jittered MNIST, the median of seven."""
    data = MNISTDataModule(root=root, batch_size=batch, validation=0.0, augment=[Jitter(2)])
    return statistics.median(epoch_seconds(data, range(9))[2:])


def measured(root: str | None, keep: bool) -> dict[str, float]:
    quiet()
    if keep and not keep_memory():
        raise SystemExit("this system's allocator cannot be told to keep memory")
    torch.set_num_threads(2)
    student, teacher = (
        partial(CIFARResNet, depth, input_shape=[3, 32, 32], num_classes=10) for depth in (20, 56)
    )
    found = {f"input, batch {batch}": inputs(root, batch) for batch in (128, 1024)}
    step = partial(
        distilled, student, teacher(), Noise(batch_size=64, validation=0.0), 12, channels_last=True
    )
    found["resnet56 -> resnet20, channels last"] = [step() for _ in range(3)][-1]
    return {**found, "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", choices=["kept", "given back"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "kept.json")
    options = parser.parse_args()
    root = options.data_root or os.environ.get("KD_DATA_ROOT")
    if options.child:
        print(json.dumps(measured(root, options.child == "kept")))
        return
    sides: dict[str, list[dict[str, float]]] = {"kept": [], "given back": []}
    for _ in range(options.rounds):
        for side, found in sides.items():
            command = [
                sys.executable,
                __file__,
                "--child",
                side,
                *(["--data-root", root] if root else []),
            ]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(run.stdout.splitlines()[-1]))
            print(side, found[-1], flush=True)
    rows = []
    for name in sides["kept"][0]:
        timings = Timings(
            {side: [found[name] for found in all_found] for side, all_found in sides.items()}, 0
        )
        middle, low, high = timings.ratio("kept", "given back")
        medians = {side: timings.median(side) for side in sides}
        rows.append(
            {"workload": name, "value": middle, "low": low, "high": high, "medians": medians}
        )
        print(f"{name}: kept / given back {middle:.3f} [{low:.3f}, {high:.3f}], {medians}")
    content = {
        "rows": rows,
        "rounds": options.rounds,
        "threads": 2,
        "commit": commit(),
        "hardware": hardware(),
    }
    write_json(options.output, {**content, "torch": torch.__version__})


if __name__ == "__main__":
    main()
