"""The `kd reproduce` command: runs an experiment and prints its table."""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from kd_lightning.errors import UserError, printable
from kd_lightning.escaping import plain
from kd_lightning.experiments.arguments import (
    parse_settings,
    parser,
    setting_words,
)
from kd_lightning.experiments.spec import Experiment, RunSpec, load

if TYPE_CHECKING:
    # These modules import torch, which a wrong argument need not wait for.
    from kd_lightning.experiments.planning import Job, RunnerOptions
    from kd_lightning.experiments.results import Results
    from kd_lightning.experiments.runner import Failure

__all__ = [
    "help_text",
    "list_experiments",
    "main",
    "parse_settings",
    "parser",
    "quick",
    "reproduce",
    "setting_words",
]

_QUICK_NOTE = (
    "These runs are far too short to rank the methods: distillation may look worse than no "
    "distillation. Without --quick, the experiment gives its own numbers."
)
"""What `--quick` prints below its table."""


def main(argv: list[str]) -> None:
    """Run `kd reproduce` with these arguments.

    Args:
        argv: the arguments.

    Raises:
        UserError: for a wrong argument, and if a run fails.
    """
    # The parser's own help does not know the settings of an experiment.
    if _asks_about_experiment(argv):
        print(help_text(argv[0]), end="")
        return
    arguments, unknown = parser().parse_known_args(argv)
    arguments.set += setting_words(unknown)
    console = Console()
    if arguments.list:
        list_experiments(console)
        return
    if not arguments.experiment:
        raise UserError(
            "kd reproduce: name an experiment; kd reproduce --list shows them"
        )
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UserError(
            f"kd reproduce: --seeds must be at least 1, got {arguments.seeds}"
        )
    if arguments.workers < 1:
        raise UserError(
            f"kd reproduce: --workers must be at least 1, got {arguments.workers}"
        )
    reproduce(arguments, console)


def _asks_about_experiment(argv: list[str]) -> bool:
    """Whether the arguments are an experiment and --help."""
    asks = "--help" in argv or "-h" in argv
    return asks and not argv[0].startswith("-")


def help_text(name: str) -> str:
    """The text of `kd reproduce NAME --help`: the options, then the settings of the experiment.

    Args:
        name: of the experiment, or path of its YAML.

    Raises:
        UserError: if there is no such experiment, or if its YAML is wrong.
    """
    experiment = load(name)
    lines = [parser().format_help(), f"settings of {experiment.name}:"]
    for setting, value in experiment.settings.items():
        shown = "null" if value is None else value
        choices = experiment.choices.get(setting)
        valid = ""
        if choices:
            valid = f"; one of {', '.join(map(str, choices))}"
        default = printable(f"default: {shown}{valid}")
        lines.append(f"  {printable(f'--{setting} VALUE')}  {default}")
    if not experiment.settings:
        lines.append("  none")
    names = dict.fromkeys(run.name for run in experiment.runs)
    lines.append(f"runs of {experiment.name}:")
    lines += [f"  {printable(run)}" for run in names]
    return "\n".join(lines) + "\n"


def list_experiments(console: Console) -> None:
    """Print the name, the claim and the duration of every shipped experiment."""
    from kd_lightning.catalog import experiments

    for row in experiments():
        name = plain(row["name"], "bold")
        duration = plain(f" ({row['time']})")
        console.print(Text.assemble(name, duration))
        claim = row["claim"].strip()
        console.print(plain(f"  {claim}"))


def reproduce(arguments: argparse.Namespace, console: Console) -> None:
    """Plan an experiment, train what is missing, write and print the results.

    Args:
        arguments: of the command.
        console: to print on.

    Raises:
        UserError: for a wrong argument, and if a run fails.
    """
    started = time.monotonic()
    experiment = load(arguments.experiment, parse_settings(arguments.set))
    if arguments.quick:
        experiment = quick(experiment)

    options = _runner_options(arguments, experiment)
    jobs = _plan(experiment, options)
    if arguments.dry_run:
        _print_commands(jobs, console)
        return

    # Runs that are finished already are not trained again, so the command also resumes.
    failures = _train(experiment, jobs, options, console)
    finished = [job for job in jobs if job.finished]
    if finished:
        _report(experiment, finished, options, console, failures)
        seconds = time.monotonic() - started
        files = f"{options.output}/results.json, results.md, summary.png"
        console.print(plain(f"{seconds:.0f} s; results in {files}"))
    if failures:
        from kd_lightning.experiments.runner import summary

        raise UserError(summary(failures, len(jobs)))


def _runner_options(
    arguments: argparse.Namespace, experiment: Experiment
) -> RunnerOptions:
    """Return how to run the experiment; its YAML fills in what the arguments leave open."""
    from kd_lightning.experiments.planning import RunnerOptions

    return RunnerOptions(
        output=arguments.output or Path("runs") / experiment.name,
        store=arguments.store,
        seeds=arguments.seeds or experiment.seeds,
        overrides=_overrides(arguments, experiment),
        only=arguments.only,
        workers=arguments.workers,
        keep_finished=arguments.keep_finished,
    )


def _plan(experiment: Experiment, options: RunnerOptions) -> list[Job]:
    """Plan all jobs, once the experiment's own functions have been checked."""
    import torch

    from kd_lightning.experiments.analysis import check_analyses
    from kd_lightning.experiments.planning import plan

    check_analyses(experiment.analyses)
    # Planning sees the same number of threads as each worker, because it is part of the keys.
    threads = torch.get_num_threads() // options.workers
    torch.set_num_threads(max(1, threads))
    return plan(experiment, options)


def _overrides(arguments: argparse.Namespace, experiment: Experiment) -> dict[str, Any]:
    """Return the overrides of all runs that the arguments imply."""
    overrides: dict[str, Any] = {}
    if arguments.data_root:
        overrides["data.root"] = arguments.data_root
    if arguments.wandb:
        overrides["run.wandb"] = arguments.wandb
    if arguments.quick:
        overrides.update(experiment.quick.get("overrides", {}))
    return overrides


def _print_commands(jobs: list[Job], console: Console) -> None:
    """Print each job's state and command, for `--dry-run`."""
    for job in jobs:
        state = "finished" if job.finished else "to run"
        if job.accepted_key is not None:
            state = "finished by other code"
        title = plain(f"{job.run}, seed {job.seed} ({state}):")
        console.print(title, soft_wrap=True)
        console.print(plain(f"  {job.command}"), soft_wrap=True)


def _train(
    experiment: Experiment,
    jobs: list[Job],
    options: RunnerOptions,
    console: Console,
) -> list[Failure]:
    """Train the unfinished jobs, until an interrupt; returns those that failed."""
    from kd_lightning.experiments.runner import Runner
    from kd_lightning.runs.command import execute

    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {options.output} cannot be written ({error.strerror}); "
            "choose another with --output"
        ) from error
    title = plain(experiment.title, "bold")
    size = plain(f": {len(jobs)} runs, {experiment.time}")
    console.print(Text.assemble(title, size))

    # A batch system ends a job by SIGTERM; the run then keeps its last checkpoint, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return Runner(options, execute, console).run(jobs)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("interrupted; repeat the command to resume") from stop


def _report(
    experiment: Experiment,
    jobs: list[Job],
    options: RunnerOptions,
    console: Console,
    failures: list[Failure],
) -> None:
    """Write the results of the finished jobs and print them as tables."""
    from kd_lightning.experiments import results
    from kd_lightning.experiments.tables import tables

    # With --only, the runs of some analyses may be missing.
    is_complete = not options.only
    failed = []
    for failure in failures:
        failed.append(results.failed_run(failure.job, failure.error))
    content = results.collect(experiment, jobs, options.output, is_complete, failed)
    _note_accepted_runs(jobs, content)
    results.write(experiment, content, options.output)

    # A wide table is divided, so that each part fits the terminal.
    headings, lines = results.cells(content)
    for table in tables(experiment.title, headings, lines, console.width):
        console.print(table)
    for comparison in content["comparisons"]:
        console.print(plain(comparison["sentence"]))
    if content["note"]:
        console.print(plain(content["note"]))


def _note_accepted_runs(jobs: list[Job], content: Results) -> None:
    """Add to results.json which runs other code finished, if any.

    `address` is where an accepted run is stored, `expected_address` where today's code would
    store it.
    """
    accepted = []
    for job in jobs:
        if job.accepted_key is not None:
            addresses = {"address": job.folder.name, "expected_address": job.address}
            accepted.append({"run": job.run, "seed": job.seed, **addresses})
    if not accepted:
        return
    sentence = f"{len(accepted)} of {len(jobs)} runs were finished by other code (--keep-finished)."
    content["accepted"] = accepted
    content["note"] = f"{content['note']} {sentence}".strip()


def quick(experiment: Experiment) -> Experiment:
    """Return the experiment cut down as its YAML describes, with a name and title that say so.

    Args:
        experiment: with its settings filled in.

    Raises:
        UserError: if its YAML describes no quick form.
    """
    if not experiment.quick:
        raise UserError(
            f"{experiment.name} has no quick form; kd reproduce --list shows how long it takes"
        )
    seeds = experiment.quick.get("seeds", 1)
    return replace(
        experiment,
        name=f"{experiment.name}-quick",
        title=f"{experiment.title} (quick: cut down, not the experiment's numbers)",
        time="minutes",
        seeds=seeds,
        note=_QUICK_NOTE,
        runs=[_quick_run(run, seeds) for run in experiment.runs],
    )


def _quick_run(run: RunSpec, seeds: int) -> RunSpec:
    """Return a run with fewer seeds, at least two if it lists its own."""
    if not run.seeds:
        return run
    # Two seeds are the fewest that have a standard deviation.
    count = max(2, seeds)
    return replace(run, seeds=run.seeds[:count])


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Treat a signal like Ctrl-C."""
    raise KeyboardInterrupt
