"""The `kd reproduce` command: runs an experiment and prints its table."""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.text import Text

from kd_lightning.errors import UserError, printable
from kd_lightning.escaping import plain
from kd_lightning.experiments.spec import Experiment, RunSpec, load
from kd_lightning.yaml_files import read_yaml

if TYPE_CHECKING:
    # These modules import torch, which a wrong argument need not wait for.
    from kd_lightning.experiments.planning import Job, RunnerOptions
    from kd_lightning.experiments.results import Results
    from kd_lightning.experiments.runner import Failure


_QUICK_NOTE = (
    "These runs are far too short to rank the methods: distillation may look worse than no "
    "distillation. Without --quick, the experiment gives its own numbers."
)
"""What `--quick` prints below its table."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"kd reproduce: {message}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that all experiments share."""
    options = _Parser(
        "kd reproduce",
        description="Run an experiment: train the missing runs and print its table.",
        allow_abbrev=False,
    )
    options.add_argument(
        "experiment", nargs="?", help="name (see --list), or path of your own YAML file"
    )
    options.add_argument(
        "--list",
        action="store_true",
        help="list all experiments with their claims and durations",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="print the commands and train nothing"
    )
    options.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="RUN",
        help="train this run and the runs it needs; may be repeated",
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="run a shortened version that takes minutes; its numbers are not the published ones",
    )
    options.add_argument(
        "--keep-finished",
        action="store_true",
        help="accept finished runs if only the code or the torch version has changed, for example "
        "after a refactoring; results.json and each run's run.json record this",
    )
    options.add_argument(
        "--workers",
        type=int,
        default=1,
        help="number of parallel runs, each with its share of the threads",
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of the experiment, such as digit=7; the short form is --digit 7",
    )
    options.add_argument(
        "--wandb",
        choices=("online", "offline"),
        help="log all runs to W&B, in one group",
    )
    options.add_argument("--seeds", type=int, help="number of seeds, starting from 0")
    options.add_argument(
        "--data-root",
        help="folder of the data sets; default: KD_DATA_ROOT, otherwise ./data",
    )
    options.add_argument(
        "--output", type=Path, help="folder of the results; default: runs/EXPERIMENT"
    )
    options.add_argument(
        "--store",
        type=Path,
        default=Path("runs/store"),
        help="folder of the runs, which all experiments share; default: runs/store",
    )
    return options


def main(argv: list[str]) -> None:
    """Run `kd reproduce` with these arguments.

    Raises:
        UserError: for a wrong argument, and if a run fails.
    """
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

    Raises:
        UserError: if there is no such experiment, or if its YAML is wrong.
    """
    experiment = load(name)
    lines = [parser().format_help(), f"settings of {experiment.name}:"]
    for setting, value in experiment.settings.items():
        shown = "null" if value is None else value
        choices = experiment.choices.get(setting)
        valid = f"; one of {', '.join(map(str, choices))}" if choices else ""
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
        console.print(
            Text.assemble(plain(row["name"], "bold"), plain(f" ({row['time']})"))
        )
        console.print(plain(f"  {row['claim'].strip()}"))


def reproduce(arguments: argparse.Namespace, console: Console) -> None:
    """Plan an experiment, train what is missing, write and print the results."""
    started = time.monotonic()
    experiment = load(arguments.experiment, parse_settings(arguments.set))
    if arguments.quick:
        experiment = quick(experiment)

    import torch

    from kd_lightning.experiments.analysis import check_analyses
    from kd_lightning.experiments.planning import RunnerOptions, plan

    check_analyses(experiment.analyses)
    # Planning sees the same number of threads as each worker, because it is part of the keys.
    threads = torch.get_num_threads() // arguments.workers
    torch.set_num_threads(max(1, threads))
    options = RunnerOptions(
        output=arguments.output or Path("runs") / experiment.name,
        store=arguments.store,
        seeds=arguments.seeds or experiment.seeds,
        overrides=_overrides(arguments, experiment),
        only=arguments.only,
        workers=arguments.workers,
        keep_finished=arguments.keep_finished,
    )
    jobs = plan(experiment, options)
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
    for job in jobs:
        state = "finished" if job.finished else "to run"
        if job.accepted_key is not None:
            state = "finished by other code"
        console.print(plain(f"{job.run}, seed {job.seed} ({state}):"), soft_wrap=True)
        console.print(plain(f"  {job.command}"), soft_wrap=True)


def _train(
    experiment: Experiment, jobs: list[Job], options: RunnerOptions, console: Console
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
    size = plain(f": {len(jobs)} runs, {experiment.time}")
    console.print(Text.assemble(plain(experiment.title, "bold"), size))

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
    failed = [results.failed_run(each.job, each.error) for each in failures]
    content = results.collect(experiment, jobs, options.output, is_complete, failed)
    _note_accepted_runs(jobs, content)
    results.write(experiment, content, options.output)

    for table in tables(experiment.title, *results.cells(content), console.width):
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


def setting_words(words: list[str]) -> list[str]:
    """Turn `--NAME VALUE` and `--NAME=VALUE` into `NAME=VALUE`.

    The names are those of an experiment's settings, which the parser does not know.

    Raises:
        UserError: for a word that is not of this form.
    """
    settings = []
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(
                f"kd reproduce: unexpected argument {name!r}; kd reproduce --help lists the options"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(
                    f"kd reproduce: unknown option {name}; a setting of the experiment needs a "
                    "value, and kd reproduce --help lists the options"
                )
            value = rest.pop(0)
        settings.append(f"{name.removeprefix('--')}={value}")
    return settings


def parse_settings(words: list[str]) -> dict[str, Any]:
    """Turn words `NAME=VALUE` into a mapping, each value read as YAML.

    Raises:
        UserError: for a word that is not of this form.
    """
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"kd reproduce: --set takes NAME=VALUE, got {word!r}")
        settings[name] = read_yaml(value, f"kd reproduce: the value of --set {name}")
    return settings


def quick(experiment: Experiment) -> Experiment:
    """Return the experiment cut down as its YAML describes, with a name and title that say so.

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
    return replace(run, seeds=run.seeds[: max(2, seeds)])


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
