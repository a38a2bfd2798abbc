"""Measure the cost of a training step: `python benchmarks/speed/step.py --data-root DIR`.

MNIST, teacher 784-1200-1200-10, student 784-800-800-10, batch size 128, T = 20, live teacher:
(a) a manual loop, (b) the Trainer with DistillationModule, (c) the student alone through the
Trainer.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

# The benchmarks are scripts, not a package, and are run from any folder.
sys.path.insert(0, str(Path(__file__).parent))

from timings import interleave
from workloads import by_hand, distilled, plain

from kd_lightning.data import MNISTDataModule
from kd_lightning.models import MLP
from kd_lightning.runs.folder import commit, hardware, write_json
from kd_lightning.runs.quiet import quiet

RATIOS = (("distilled", "by hand"), ("student alone", "distilled"))


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=9, help="rounds to measure")
    parser.add_argument(
        "--steps", type=int, default=469, help="training steps per round"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "step.json"
    )
    return parser.parse_args()


def main() -> None:
    """Measure the three workloads, print and write the results."""
    options = parse_options()
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
    # The workloads take turns, so that the ratios below come from the same rounds.
    timings = interleave(workloads, options.rounds)
    milliseconds = {name: 1000 * timings.median(name) for name in workloads}
    for name, value in milliseconds.items():
        print(f"{name}: {value:.2f} ms per step (median of {options.rounds})")
    ratios = {}
    for a, b in RATIOS:
        median, low, high = timings.ratio(a, b)
        ratios[f"{a} / {b}"] = {"median": median, "low": low, "high": high}
        print(f"{a} / {b}: {median:.3f} [{low:.3f}, {high:.3f}]")
    content = {
        "ms_a_step": milliseconds,
        "ratios": ratios,
        "rounds": options.rounds,
        "dropped_rounds": timings.dropped,
        "steps": options.steps,
        "threads": options.threads,
        "commit": commit(),
        "hardware": hardware(),
    }
    write_json(options.output, content)


if __name__ == "__main__":
    main()
