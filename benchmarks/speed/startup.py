"""Measure where the time of `kd fit` goes from the interpreter's start to the first step.

Run `python benchmarks/speed/startup.py`. The results are medians over several starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ROOT = Path(__file__).parent.parent.parent / "configs"
CONFIGS = ("trainer", "data/digits", "teachers/digits_mlp", "loggers/csv")
SETTINGS = (
    "--trainer.max_steps=1",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
)


class Stopwatch:
    """Attributes the time since the previous call to named parts.

    Args:
        started: start of the first part, as `time.time` gives it.
    """

    def __init__(self, started: float) -> None:
        self.parts: dict[str, float] = {}
        self._last = started

    def finish(self, part: str) -> None:
        """Add the time since the previous call to a part."""
        now = time.time()
        # A part may be finished more than once: its times add up.
        seconds_so_far = self.parts.get(part, 0.0)
        self.parts[part] = seconds_so_far + now - self._last
        self._last = now

    def wrap(self, owner: type, method: str, before: str, during: str) -> None:
        """Time a method of a class.

        Args:
            owner: the class.
            method: name of the method.
            before: part that ends when the method is called.
            during: part that ends when the method returns.
        """
        original = getattr(owner, method)
        setattr(owner, method, self._timed(original, before, during))

    def _timed(
        self, function: Callable[P, R], before: str, during: str
    ) -> Callable[P, R]:
        """The function, timed as `wrap` describes."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            self.finish(before)
            result = function(*args, **kwargs)
            self.finish(during)
            return result

        return timed


def run_child(started: float, folder: str) -> None:
    """Run `kd fit` once in this process, and print the seconds of its parts as JSON.

    Args:
        started: start of the interpreter, as `time.time` gives it.
        folder: a temporary folder for the run.
    """
    watch = Stopwatch(started)
    # The imports are inside of this function, so that each can be timed by itself.
    watch.finish("start of the interpreter")
    import torch  # noqa: F401

    watch.finish("import torch")
    import lightning  # noqa: F401

    watch.finish("import lightning, without torch")
    from kd_lightning.training.base import BaseModule

    from kd_lightning.runs import launch

    watch.finish("other imports")
    launcher = launch.Launcher
    watch.wrap(launcher, "parse_arguments", "parser", "arguments and YAML")
    watch.wrap(
        launcher, "instantiate_classes", "arguments and YAML", "data and networks"
    )
    watch.wrap(launcher, "_trainer", "run folder and checks", "Trainer")
    first_step = "Trainer to the end of the first step"
    watch.wrap(BaseModule, "on_train_batch_end", first_step, first_step)
    argv = ["fit"]
    for name in CONFIGS:
        argv += ["-c", str(ROOT / f"{name}.yaml")]
    launch.launch([*argv, *SETTINGS, f"--run.dir={folder}/run"])
    watch.finish("end of the run")
    print(json.dumps(watch.parts))


def measure_start() -> dict[str, float]:
    """The seconds of each part of one start in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", str(time.time()), folder]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    # The run itself prints before the results.
    last_line = process.stdout.splitlines()[-1]
    parts: dict[str, float] = json.loads(last_line)
    return parts


def main() -> None:
    """Measure all starts, write the medians and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=7, help="starts to measure")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("startup.json")
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        started, folder = options.child
        run_child(float(started), folder)
        return
    # The first start fills the disk cache and is not counted.
    measure_start()
    starts = [measure_start() for _ in range(options.starts)]
    medians = {}
    for part in starts[0]:
        medians[part] = statistics.median(parts[part] for parts in starts)
    content = {"seconds": medians, "starts": options.starts}
    options.output.write_text(json.dumps(content, indent=2) + "\n")
    for part, seconds in medians.items():
        print(f"| {part} | {seconds:.2f} s |")
    print(f"| all | {sum(medians.values()):.2f} s |")


if __name__ == "__main__":
    main()
