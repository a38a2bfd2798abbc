"""Trains for a long time in one process, and watches memory, open files and the time per epoch.

    python benchmarks/reliability/soak.py --minutes 40 --output soak.json

Distillation on digits with augmentation, checkpoints and logs runs again and again in one process,
as in a notebook or a sweep. Nothing may grow: the last quarter is compared with the second one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
from cases import TEACHER, configs

EPOCHS = 10


def resident_bytes() -> int:
    """Physical memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def measure(minutes: float, folder: Path) -> list[dict[str, float]]:
    """Train again and again.

    Args:
        minutes: for how long.
        folder: for the runs.

    Returns:
        One measurement per run: minutes since the start, bytes, files, threads, seconds per epoch.
    """
    from kd_lightning.cli import main

    os.chdir(folder)
    assert main([*TEACHER[:-1], "--run.dir=teacher"]) == 0
    names = ("trainer.yaml", "data/digits.yaml", "pairs/digits_mlp256_mlp16.yaml")
    arguments = [
        "fit",
        *configs(*names, "methods/kd.yaml", "loggers/csv.yaml"),
        "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixels: 1}}]",
        "--model.teacher.checkpoint=teacher/checkpoints/last.ckpt",
        f"--trainer.max_epochs={EPOCHS}",
    ]
    began = time.monotonic()
    measurements = []
    while time.monotonic() - began < 60 * minutes:
        run_began = time.monotonic()
        number = len(measurements)
        assert (
            main([*arguments, f"--seed_everything={number}", f"--run.dir=run{number}"])
            == 0
        )
        measurements.append(
            {
                "minutes": (time.monotonic() - began) / 60,
                "resident_bytes": resident_bytes(),
                "open_files": open_files(),
                "threads": threading.active_count(),
                "epoch_s": (time.monotonic() - run_began) / EPOCHS,
            }
        )
    return measurements


def main() -> int:
    """Measure, print the second and the last quarter, and return 1 if something grew."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=40.0)
    options.add_argument(
        "--output", type=Path, help="write all measurements to this JSON file"
    )
    arguments = options.parse_args()
    output = arguments.output.resolve() if arguments.output else None
    harness.import_everything()
    with tempfile.TemporaryDirectory(prefix="kd-soak-") as name:
        measurements = measure(arguments.minutes, Path(name))
    quarter = len(measurements) // 4
    second = measurements[quarter : 2 * quarter]
    last = measurements[-quarter:]
    print(f"{len(measurements)} runs of {EPOCHS} epochs")
    print("| measured | second quarter | last quarter | ratio |")
    print("| --- | ---: | ---: | ---: |")
    grew = False
    for key, limit in (("resident_bytes", 1.05), ("open_files", 1.0), ("threads", 1.0)):
        before = statistics.median(m[key] for m in second)
        after = statistics.median(m[key] for m in last)
        grew = grew or after > limit * before
        print(f"| {key} | {before:,.0f} | {after:,.0f} | {after / before:.3f} |")
    before = statistics.median(m["epoch_s"] for m in second)
    after = statistics.median(m["epoch_s"] for m in last)
    print(f"| epoch_s | {before:.3f} | {after:.3f} | {after / before:.3f} |")
    if output:
        output.write_text(json.dumps(measurements, indent=2) + "\n")
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
