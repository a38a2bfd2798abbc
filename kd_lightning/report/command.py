"""The `kd report` command: one HTML page about runs or experiments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning import __version__
from kd_lightning.errors import UserError, printable
from kd_lightning.runs.arguments import CommandParser

# Everything else is imported when it is needed: torch takes seconds, and a mistake in
# the arguments must be reported at once.
if TYPE_CHECKING:
    from kd_lightning.report.blocks import Section
    from kd_lightning.report.reading import ReportedRun


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    command = CommandParser(
        "kd report",
        description="Write one HTML page about runs or experiments: curves, metrics, "
        "confusions, calibration, agreement with the teacher, its soft targets, the "
        "worst mistakes, config and environment. The page needs no other file and no "
        "network. It shows several runs side by side.",
    )
    command.add_argument(
        "targets",
        nargs="+",
        metavar="RUN|EXPERIMENT",
        help="folders of runs, or experiments that kd reproduce has run: their names, "
        "the folders of their results, or results.json",
    )
    _add_options(command)
    return command


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="default: report.html",
    )
    command.add_argument(
        "--benchmark",
        type=Path,
        metavar="FILE.json",
        help="show the measurements that kd benchmark --output wrote",
    )
    command.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="folder of an experiment's runs; default: the folder store beside its "
        "results",
    )
    command.add_argument(
        "--wandb",
        action="store_true",
        help="also add the page and its figures to each run in W&B: online if an API "
        "key is found, otherwise offline",
    )
    command.add_argument(
        "--no-data",
        action="store_true",
        help="use only the files in the folders: show no samples, and do not run the "
        "teacher on the test data",
    )


def main(argv: Sequence[str]) -> None:
    """Run `kd report`.

    Args:
        argv: the arguments after `report`.

    Raises:
        UserError: if an argument is wrong, or a target is neither run nor experiment.
    """
    options = parser().parse_args(argv)
    _check_output(options.output)
    experiments, runs = find_targets(options.targets)
    if options.wandb and experiments:
        raise UserError(
            f"--wandb adds figures to runs; {next(iter(experiments))} is an experiment, "
            "whose runs are below its store"
        )

    from kd_lightning.files import write_whole_text
    from kd_lightning.report.blocks import Page
    from kd_lightning.report.page import render
    from kd_lightning.report.wandb import identity_of, mode_of_report, send_report
    from kd_lightning.runs.folder import RunFolder

    mode = None
    if options.wandb:
        # Before networks and data are built again, which takes longer than finding a mistake.
        mode = mode_of_report()
        for run in runs:
            identity_of(RunFolder(Path(run)))
    names, sections, reported = _sections(experiments, runs, options)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = Page(
        title=f"Report: {', '.join(names)}",
        subtitle=f"kd_lightning {__version__}, {now}",
        sections=sections,
    )
    html = render(page)
    write_whole_text(options.output, html)
    print(printable(f"report: {options.output}"))
    if mode is not None:
        send_report(page, html, reported, mode)


def _check_output(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is read."""
    if path.is_dir():
        raise UserError(
            f"--output {path} is a folder; name a file, such as report.html"
        )
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: the folder {path.parent} does not exist")


def find_targets(names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Tell experiments from runs.

    Args:
        names: as the user wrote them.

    Returns:
        The results.json of each experiment by its name, and the folders of the runs.

    Raises:
        UserError: if a name is neither.
    """
    from kd_lightning.compare.names import find_results, nothing_to_compare

    experiments = {}
    runs = []
    # A target that is named twice is reported once.
    for name in dict.fromkeys(names):
        results = find_results(name)
        if results is not None:
            experiments[name] = results
        elif (Path(name) / "run.json").is_file():
            runs.append(name)
        else:
            raise nothing_to_compare(name)
    return experiments, runs


def _sections(
    experiments: dict[str, Path],
    runs: Sequence[str],
    options: argparse.Namespace,
) -> tuple[list[str], list[Section], list[ReportedRun]]:
    """What is reported.

    Returns:
        The names, all sections (experiments first, then runs), and the runs.
    """
    from kd_lightning.report.costs import read_benchmark
    from kd_lightning.report.experiment import read_experiment, sections_of_experiment
    from kd_lightning.report.reading import read_runs
    from kd_lightning.report.run_sections import sections_of_runs

    # Files of the user's first: building a network takes longer than finding a mistake.
    benchmark = read_benchmark(options.benchmark) if options.benchmark else {}
    names: list[str] = []
    sections: list[Section] = []
    for path in experiments.values():
        experiment = read_experiment(path, options.store)
        names.append(experiment.name)
        # Runs have sections of the same titles.
        alone = len(experiments) == 1 and not runs
        prefix = "" if alone else f"{experiment.name}: "
        sections += sections_of_experiment(experiment, prefix)
    reported: list[ReportedRun] = []
    if runs:
        reported = read_runs(runs, with_data=not options.no_data)
        names += [run.label for run in reported]
        sections += sections_of_runs(reported, benchmark)
    return names, sections, reported
