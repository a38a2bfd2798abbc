"""`kd cache`: computes a teacher's outputs for every sample and view once."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.escaping import plain
from kd_lightning.runs.arguments import CommandParser
from kd_lightning.runs.configs import resolve_configs

if TYPE_CHECKING:
    import torch

    from kd_lightning.runs.build import BuiltRun
    from kd_lightning.training.distillation import DistillationModule


def parser() -> argparse.ArgumentParser:
    """The parser of the options that `kd cache` has besides those of `kd fit`."""
    options = CommandParser(
        "kd cache",
        usage="kd cache -c FILE.yaml ... [--model.teacher.checkpoint=PATH ...] --output DIR "
        "[options]\n       kd cache --verify --output DIR",
        description="Compute a teacher's outputs for every sample and view once; "
        "CachedTeacher(path) replays them. Takes the configs and overrides of kd fit as well.",
    )
    options.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the cache; a call that was stopped resumes there",
    )
    options.add_argument(
        "--views",
        type=int,
        default=1,
        help="draws of the augmentation: epoch e trains on view e mod VIEWS",
    )
    options.add_argument(
        "--top-k",
        type=int,
        help="keep the K largest logits of each sample, and the sum of the rest per temperature",
    )
    options.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        metavar="T",
        help="temperatures at which losses can read a top-k cache; "
        "default: those of the config's losses",
    )
    options.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    options.add_argument(
        "--features",
        nargs="*",
        default=[],
        metavar="ROLE",
        help="layers of the teacher to cache as well",
    )
    options.add_argument(
        "--verify",
        action="store_true",
        help="compute nothing; check every file of the cache in DIR against its checksum",
    )
    return options


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left; in a log file, print a line at every tenth.

    Args:
        total: number of samples.

    Yields:
        A function that adds a number of finished samples.
    """
    console = Console()
    if console.is_terminal:
        with _bar(total, console) as advance:
            yield advance
        return
    # A log file keeps every line, so there are few.
    done = 0
    printed_tenths = 0

    def print_tenths(count: int) -> None:
        nonlocal done, printed_tenths
        done += count
        tenths = 10 * done // total if total else 0
        if tenths > printed_tenths:
            printed_tenths = tenths
            console.print(f"caching: {done:,} of {total:,} samples", highlight=False)

    yield print_tenths


@contextlib.contextmanager
def _bar(total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """The bar of `progress` in a terminal."""
    from rich.progress import (
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TextColumn("samples"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("caching", total=total)
        yield lambda count: bar.advance(task, count)


def main(argv: list[str]) -> None:
    """Run `kd cache`.

    Args:
        argv: the arguments.

    Raises:
        UserError: for a user's mistake.
    """
    options, rest = parser().parse_known_args(argv)
    # Verifying needs neither configs nor a teacher.
    if options.verify:
        _verify(options.output, rest)
        return
    # Before torch is imported, so that a mistyped path is reported at once.
    arguments = resolve_configs(rest)
    from kd_lightning.teachers.cache.fill import check_sizes

    # Before the data is read: a wrong size is found at once.
    check_sizes(options.views, options.top_k)
    from kd_lightning.runs.build import build_run
    from kd_lightning.runs.memory import keep_memory
    from kd_lightning.runs.parsing import parse_resolved, run_parser
    from kd_lightning.runs.quiet import quiet
    from kd_lightning.teachers import cache_teacher

    quiet()
    # The same parser as for training, so that the same configs describe the same teacher.
    run_options = run_parser("fit")
    config = parse_resolved(run_options, arguments)
    if config.run.keep_memory:
        keep_memory()
    run = build_run("fit", run_options, config)
    module = _with_live_teacher(run)
    folder = cache_teacher(
        module.teacher,
        run.datamodule,
        options.output,
        views=options.views,
        top_k=options.top_k,
        dtype=options.dtype,
        features=tuple(options.features),
        device=_device(config.trainer.accelerator),
        progress=progress,
        temperatures=_temperatures(options, module),
    )
    # Without augmentation there is one view, whatever --views says.
    _report(folder, options.views if run.datamodule.augmented else None)
    for note in module.teacher.notes:
        Console().print(plain(f"note: {note}"), soft_wrap=True)


def _with_live_teacher(run: BuiltRun) -> DistillationModule:
    """The module of a run whose teacher computes outputs.

    Raises:
        UserError: if it has no teacher, or one that is a cache already.
    """
    from kd_lightning.teachers import CachedTeacher
    from kd_lightning.training.distillation import DistillationModule

    module = run.module
    needed = UserError(
        "kd cache needs a live teacher: compose a pair, such as "
        "-c configs/pairs/mlp1200_mlp800.yaml"
    )
    if not isinstance(module, DistillationModule):
        raise needed
    if isinstance(module.teacher, CachedTeacher):
        raise needed
    return module


def _verify(folder: Path, rest: list[str]) -> None:
    """Check every file of a cache, and print how much it holds.

    Raises:
        UserError: if a file is damaged, or there are more arguments than the folder.
    """
    from kd_lightning.teachers.cache.opening import verify_cache

    if rest:
        raise UserError(f"kd cache --verify takes nothing but --output, got {rest[0]}")
    size = verify_cache(folder)
    text = f"{folder}: all files are intact, {size / 1e6:,.1f} MB"
    Console().print(plain(text), soft_wrap=True)


def _temperatures(
    options: argparse.Namespace, module: DistillationModule
) -> list[float]:
    """The temperatures that a top-k cache stores: as given, or those of the module's losses.

    Raises:
        UserError: if temperatures are given for a cache of all logits, or are not positive.
    """
    # A loss reads a top-k cache at its own temperature only.
    if options.temperatures is None:
        temperatures: list[float] = []
        for _, loss in module.objective.named_losses():
            temperatures += loss.teacher_temperatures
        return temperatures
    if options.top_k is None:
        raise UserError(
            "--temperatures is only for --top-k; a cache of all logits serves every temperature"
        )
    from kd_lightning.losses.base import positive

    checked = []
    for value in options.temperatures:
        checked.append(positive("kd cache", "--temperatures", value))
    return checked


def _device(accelerator: str) -> torch.device:
    """The device of the Trainer's option `accelerator`."""
    import torch

    wants_gpu = accelerator in ("auto", "gpu", "cuda")
    if wants_gpu and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def _report(folder: Path, views: int | None) -> None:
    """Print the size of a cache and how to train with it."""
    # With the manifest and the row numbers.
    size = sum(path.stat().st_size for path in folder.iterdir())
    console = Console()
    summary = plain(f"{folder}: {size / 1e6:,.1f} MB")
    console.print(summary, soft_wrap=True)
    options = f"--model.teacher=kd_lightning.teachers.CachedTeacher --model.teacher.path={folder}"
    if views is not None:
        options += f" --data.views={views}"
    console.print(plain(f"train with: {options}"), soft_wrap=True)
