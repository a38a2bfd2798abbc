"""`kd reproduce`."""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.experiments.spec import Experiment, load


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"kd reproduce: {message}")


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        "kd reproduce",
        description="Run a published experiment: train what is missing, print its table.",
        allow_abbrev=False,
    )
    made.add_argument(
        "experiment", nargs="?", help="its name (see --list), or the path of a YAML of yours"
    )
    made.add_argument(
        "--list",
        action="store_true",
        help="name all experiments, their claims and how long they take",
    )
    made.add_argument("--dry-run", action="store_true", help="print the commands and train nothing")
    made.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="RUN",
        help="this run and what it needs; may be repeated",
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="cut down to minutes, to see it work; not the published numbers",
    )
    made.add_argument(
        "--workers",
        type=int,
        default=1,
        help="runs side by side, each with its share of the threads",
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the experiment, such as digit=7; also written --digit 7",
    )
    made.add_argument(
        "--wandb", choices=("online", "offline"), help="log all runs there, in one group"
    )
    made.add_argument("--seeds", type=int, help="how many seeds, from 0")
    made.add_argument("--data-root", help="folder of the data sets; else KD_DATA_ROOT, else ./data")
    made.add_argument(
        "--output", type=Path, help="folder of the results; runs/EXPERIMENT where left out"
    )
    made.add_argument(
        "--store",
        type=Path,
        default=Path("runs/store"),
        help="folder of the runs, shared by all experiments",
    )
    return made


def main(argv: list[str]) -> None:
    arguments, more = parser().parse_known_args(argv)
    arguments.set += _named(more)
    console = Console()
    if arguments.list:
        from kd_lightning.catalog import experiments

        for row in experiments():
            console.print(
                f"[bold]{row['name']}[/bold] ({row['time']})\n  {row['claim'].strip()}",
                highlight=False,
            )
        return
    if not arguments.experiment:
        raise UserError("kd reproduce: name an experiment; kd reproduce --list shows them")
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UserError(f"kd reproduce: --seeds must be at least 1, got {arguments.seeds}")
    if arguments.workers < 1:
        raise UserError(f"kd reproduce: --workers must be at least 1, got {arguments.workers}")
    reproduce(arguments, console)


def reproduce(arguments: Any, console: Console) -> None:
    """Plan, train what is missing, write and print the results."""
    started = time.monotonic()
    experiment = load(arguments.experiment, _settings(arguments.set))
    if arguments.quick:
        experiment = quick(experiment)
    import torch

    from kd_lightning.experiments import results
    from kd_lightning.experiments.planning import Settings, plan
    from kd_lightning.experiments.runner import Runner
    from kd_lightning.experiments.tables import tables
    from kd_lightning.runs.command import execute

    torch.set_num_threads(max(1, torch.get_num_threads() // arguments.workers))
    output = arguments.output or Path("runs") / experiment.name
    extra = {"data.root": arguments.data_root} if arguments.data_root else {}
    if arguments.wandb:
        extra["run.wandb"] = arguments.wandb
    extra |= experiment.quick.get("overrides", {}) if arguments.quick else {}
    seeds = arguments.seeds or experiment.seeds
    settings = Settings(output, arguments.store, seeds, extra, arguments.only, arguments.workers)
    jobs = plan(experiment, settings)
    if arguments.dry_run:
        for job in jobs:
            state = "finished" if job.finished else "to run"
            line = f"{job.run}, seed {job.seed} ({state}):\n  {job.command}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {output} cannot be written ({error.strerror}); choose another with --output"
        ) from error
    console.print(
        f"[bold]{experiment.title}[/bold]: {len(jobs)} runs, {experiment.time}", highlight=False
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        Runner(settings, execute, console).run(jobs)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from stop
    content = results.collect(experiment, jobs, output, complete=not arguments.only)
    results.write(experiment, content, output)
    for table in tables(experiment.title, *results.cells(content), console.width):
        console.print(table)
    for comparison in content["comparisons"]:
        console.print(comparison["sentence"], highlight=False)
    if content["note"]:
        console.print(content["note"], highlight=False)
    console.print(
        f"{time.monotonic() - started:.0f} s; results in {output}/results.json, results.md, summary.png",
        highlight=False,
    )


def _named(words: list[str]) -> list[str]:
    """`--NAME VALUE` and `--NAME=VALUE` of settings, which each experiment has of its own, as `NAME=VALUE`."""
    found, rest = [], list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(
                f"kd reproduce: {name!r} is not understood; kd reproduce --help shows what is"
            )
        if not equals and (not rest or rest[0].startswith("--")):
            raise UserError(
                f"kd reproduce: {name} is no option of its own; as a setting of the experiment it needs a value"
            )
        found.append(f"{name.removeprefix('--')}={value if equals else rest.pop(0)}")
    return found


def _settings(words: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` as YAML reads the value."""
    import yaml

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"kd reproduce: --set takes NAME=VALUE, got {word!r}")
        found[name] = yaml.safe_load(value)
    return found


def quick(experiment: Experiment) -> Experiment:
    """The experiment cut down as its YAML says, and marked so.

    Raises:
        UserError: where its YAML does not say how.
    """
    if not experiment.quick:
        raise UserError(
            f"{experiment.name} has no quick form; kd reproduce --list shows how long it takes"
        )
    seeds = int(experiment.quick.get("seeds", 1))
    return replace(
        experiment,
        name=f"{experiment.name}-quick",
        title=f"{experiment.title} (quick: cut down, not the experiment's numbers)",
        time="minutes",
        seeds=seeds,
        runs=[
            replace(run, seeds=run.seeds and run.seeds[: max(2, seeds)]) for run in experiment.runs
        ],
    )


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
