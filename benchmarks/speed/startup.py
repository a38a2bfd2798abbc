"""Where the time of `kd fit` goes, from the start of the interpreter to the first step: medians of several starts."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent / "configs"
CONFIGS = ("trainer", "data/digits", "teachers/digits_mlp", "loggers/csv")


def child(started: float, folder: str) -> None:
    """One start, each part timed from the end of the one before; prints the parts as JSON."""
    parts: dict[str, float] = {}
    last = started

    def done(name: str) -> None:
        nonlocal last
        now = time.time()
        parts[name], last = parts.get(name, 0.0) + now - last, now

    done("start of the interpreter")
    import torch  # noqa: F401

    done("import torch")
    import lightning  # noqa: F401

    done("import lightning, without torch")
    from kd_lightning.runs import launch
    from kd_lightning.training.base import BaseModule

    done("other imports")

    def timed(owner: Any, method: str, before: str, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            done(before)
            result = original(*args, **kwargs)
            done(name)
            return result

        setattr(owner, method, wrapped)

    timed(launch.Launcher, "parse_arguments", "parser", "arguments and YAML")
    timed(launch.Launcher, "instantiate_classes", "arguments and YAML", "data and networks")
    timed(launch.Launcher, "_trainer", "run folder and checks", "Trainer")
    timed(
        BaseModule,
        "on_train_batch_end",
        "Trainer to the end of the first step",
        "Trainer to the end of the first step",
    )
    argv = ["fit", *(word for name in CONFIGS for word in ("-c", str(ROOT / f"{name}.yaml")))]
    settings = (
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        "--trainer.enable_progress_bar=false",
    )
    launch.launch([*argv, *settings, f"--run.dir={folder}/run"])
    done("end of the run")
    print(json.dumps(parts))


def main(starts: int = 7) -> None:
    found: list[dict[str, float]] = []
    for _ in range(starts + 1):  # the first fills the disk's cache
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(time.time()), folder]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found.append(json.loads(said.splitlines()[-1]))
    table = {name: statistics.median(parts[name] for parts in found[1:]) for name in found[0]}
    Path(__file__).with_name("startup.json").write_text(
        json.dumps({"seconds": table, "starts": starts}, indent=2) + "\n"
    )
    for name, seconds in table.items():
        print(f"| {name} | {seconds:.2f} s |")
    print(f"| all | {sum(table.values()):.2f} s |")


if __name__ == "__main__":
    child(float(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else main()
