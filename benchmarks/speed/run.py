"""Run all speed comparisons: `python benchmarks/speed/run.py --data-root DIR`.

Install torchdistill to compare with it too. Each comparison runs its sides in turn, in several
rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

# The benchmarks are scripts, not a package, and are run from any folder.
sys.path.insert(0, str(Path(__file__).parent))
# Compiles in this process, because compiler processes would count as a disturbance.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from comparisons import commands, inputs, mlps, resnets, tiny
from report import Row, print_table

from kd_lightning.runs.folder import commit, hardware, write_json
from kd_lightning.runs.memory import keep_memory
from kd_lightning.runs.quiet import quiet


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=7, help="rounds per comparison")
    parser.add_argument(
        "--steps", type=int, default=300, help="training steps per round"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results.json"
    )
    return parser.parse_args()


def main() -> None:
    """Measure all comparisons, write the results and print them as a table."""
    options = parse_options()
    quiet()
    # As `kd fit` does. It also speeds up the other side.
    keep_memory()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    rows: list[Row] = []
    for comparison in (commands, inputs, mlps, tiny, resnets):
        rows += comparison(options)
        # Written after each comparison, so that an interrupted run leaves its results.
        content = {
            "rows": rows,
            "commit": commit(),
            "hardware": hardware(),
            "threads": options.threads,
            "wall_time_s": round(time.monotonic() - started, 1),
            "torch": torch.__version__,
        }
        write_json(options.output, content)
    print_table(rows, options.threads)


if __name__ == "__main__":
    main()
