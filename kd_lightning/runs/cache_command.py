"""`kd cache`: a teacher's outputs for every sample and view, once."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.runs.configs import resolve_configs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"kd cache: {message}")


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        "kd cache",
        usage="kd cache -c FILE.yaml ... [--model.teacher.checkpoint=PATH ...] --output DIR [options]",
        description="Compute a teacher's outputs for every sample and view once; CachedTeacher(path) replays them. "
        "Takes the configs and overrides of kd fit besides these options.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the cache; a call that was stopped goes on there",
    )
    made.add_argument(
        "--views",
        type=int,
        default=1,
        help="draws of the augmentation: epoch e trains on view e mod VIEWS",
    )
    made.add_argument(
        "--top-k",
        type=int,
        help="keep the K largest logits of each sample, and the sum of the rest",
    )
    made.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    made.add_argument(
        "--features",
        nargs="*",
        default=[],
        metavar="ROLE",
        help="layers of the teacher to cache besides",
    )
    return made


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with time left; in a log file, a line at every tenth."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    if console.is_terminal:
        with Progress(
            *Progress.get_default_columns()[:2],
            MofNCompleteColumn(),
            TextColumn("samples"),
            TimeRemainingColumn(),
        ) as bar:
            task = bar.add_task("caching", total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, said = 0, 0

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if total and 10 * done // total > said:
            said = 10 * done // total
            console.print(f"caching: {done:,} of {total:,} samples", highlight=False)

    yield advance


def main(argv: list[str]) -> None:
    options, rest = parser().parse_known_args(argv)
    from kd_lightning.runs.build import Builder, quiet
    from kd_lightning.runs.lean import keep_memory
    from kd_lightning.runs.messages import config_errors
    from kd_lightning.teachers import CachedTeacher, cache_teacher
    from kd_lightning.training.distillation import DistillationModule

    quiet()
    keep_memory()
    with config_errors():
        built = Builder(["fit", *resolve_configs(rest)])
    module = built.model
    if not isinstance(module, DistillationModule) or isinstance(module.teacher, CachedTeacher):
        raise UserError(
            "kd cache needs a live teacher: compose a pair, such as -c configs/pairs/mlp1200_mlp800.yaml"
        )
    accelerator = built.config["fit"].trainer.accelerator
    device = torch.device(
        "cuda" if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda") else "cpu"
    )
    folder = cache_teacher(
        module.teacher,
        built.datamodule,
        options.output,
        views=options.views,
        top_k=options.top_k,
        dtype=options.dtype,
        features=tuple(options.features),
        device=device,
        progress=progress,
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    console = Console()
    console.print(f"{folder}: {size / 1e6:,.1f} MB", highlight=False)
    console.print(
        f"train with: --model.teacher=kd_lightning.teachers.CachedTeacher --model.teacher.path={folder}"
        + (f" --data.views={options.views}" if built.datamodule.augmented else ""),
        highlight=False,
        soft_wrap=True,
    )
