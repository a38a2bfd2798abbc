"""What a training step costs: `python benchmarks/speed/step.py --data-root DIR`.

MNIST, teacher 784-1200-1200-10, student 784-800-800-10, batch 128, T = 20, live teacher: (a) a loop written by hand, (b) the
Trainer with DistillationModule, (c) the student alone through the Trainer.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import interleave
from workloads import by_hand, distilled, plain

from kd_lightning.data import MNISTDataModule
from kd_lightning.models import MLP
from kd_lightning.runs.build import quiet
from kd_lightning.runs.folder import commit, hardware, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=469)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "step.json")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    data = MNISTDataModule(root=options.data_root, batch_size=128, validation=0.0)
    student = partial(MLP, [800, 800], input_shape=[1, 28, 28], num_classes=10)
    teacher = MLP([1200, 1200], input_shape=[1, 28, 28], num_classes=10)
    workloads = {
        "by hand": partial(by_hand, student, teacher, data, options.steps),
        "distilled": partial(distilled, student, teacher, data, options.steps),
        "student alone": partial(plain, student, data, options.steps),
    }
    timings = interleave(workloads, options.rounds)
    ratios = {
        f"{a} / {b}": timings.ratio(a, b)
        for a, b in (("distilled", "by hand"), ("student alone", "distilled"))
    }
    for name in workloads:
        print(f"{name}: {1000 * timings.median(name):.2f} ms a step (median of {options.rounds})")
    for name, (middle, low, high) in ratios.items():
        print(f"{name}: {middle:.3f} [{low:.3f}, {high:.3f}]")
    write_json(
        options.output,
        {
            "ms_a_step": {name: 1000 * timings.median(name) for name in workloads},
            "ratios": {
                name: {"median": m, "low": low, "high": high}
                for name, (m, low, high) in ratios.items()
            },
            "rounds": options.rounds,
            "dropped_rounds": timings.dropped,
            "steps": options.steps,
            "threads": options.threads,
            "commit": commit(),
            "hardware": hardware(),
        },
    )


if __name__ == "__main__":
    main()
