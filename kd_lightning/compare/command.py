"""The `kd compare` command: prints one table over runs and seeds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.errors import UserError, printable
from kd_lightning.runs.arguments import CommandParser

# Everything else is imported when it is needed: torch takes seconds, and a mistake in the arguments
# must be reported at once.
if TYPE_CHECKING:
    from kd_lightning.compare.output import ComparisonTable
    from kd_lightning.experiments.measurements import SeedGroup

FORMAT_OF_SUFFIX = {
    ".md": "markdown",
    ".csv": "csv",
    ".json": "json",
    ".tex": "latex",
}


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    command = CommandParser(
        "kd compare",
        usage="kd compare RUN... | EXPERIMENT... | --wandb ENTITY/PROJECT | --diff A B  "
        "[options]",
        description="Print one table. Runs that differ only in the seed form one row with "
        "mean ± standard deviation.",
    )
    _add_sources(command)
    _add_table_options(command)
    _add_plot_options(command)
    _add_diff_option(command)
    return command


def _add_sources(command: CommandParser) -> None:
    """Add where the runs come from."""
    command.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folders of runs, or names of experiments that kd reproduce has run",
    )
    command.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="read the runs of a W&B project"
    )
    command.add_argument(
        "--group",
        help="with --wandb, only the runs of this group; kd reproduce creates one group per experiment",
    )


def _add_table_options(command: CommandParser) -> None:
    """Add what the table shows, and how it is written."""
    command.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        help="metrics in the table; default: the test metrics that all runs have",
    )
    command.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="KEY",
        help="print one row per value of these settings, such as temperature",
    )
    command.add_argument(
        "--baseline",
        metavar="ROW",
        help="test the difference of the first metric from the row with this label",
    )
    command.add_argument(
        "--format",
        choices=("terminal", "markdown", "csv", "json", "latex"),
        help="default: determined by the suffix of FILE, otherwise terminal",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="write the table to this file"
    )


def _add_plot_options(command: CommandParser) -> None:
    """Add the plot and its horizontal axis."""
    command.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot the first metric of each row with its seeds; the suffix is .png, .svg or .pdf",
    )
    command.add_argument(
        "--against",
        metavar="COST",
        help="with --plot, the horizontal axis: parameters, flops, file_bytes, or a recorded "
        "cost such as latency_ms_batch_1",
    )


def _add_diff_option(command: CommandParser) -> None:
    """Add the comparison of two runs' settings, which stands alone."""
    command.add_argument(
        "--diff",
        nargs=2,
        metavar=("A", "B"),
        help="print what differs between two runs: settings, data, code and versions",
    )


def main(argv: list[str]) -> None:
    """Run `kd compare`.

    Raises:
        UserError: if the arguments are wrong, or if there is nothing that can be compared.
    """
    options = parser().parse_args(argv)
    _check(options)
    suffix = options.output.suffix if options.output else ""
    format_name = options.format or FORMAT_OF_SUFFIX.get(suffix, "terminal")
    if options.diff:
        from kd_lightning.compare.diff import diff_text

        _show(diff_text(options.diff, format_name), options.output)
        return
    groups, notes = _read_groups(options)
    table = build_table(groups, notes, options)
    if options.plot:
        _plot(groups, table, options)

    from kd_lightning.compare.output import FORMATS

    _show(FORMATS[format_name](table), options.output)
    # A CSV has no place for notes.
    # A reader of the file must not take a note for a row.
    if format_name == "csv":
        for note in table.notes:
            print(printable(note), file=sys.stderr)


def _show(text: str, path: Path | None) -> None:
    """Print a text, or write it to a file."""
    if path:
        _write(path, text)
    else:
        print(text, end="")


def _plot(
    groups: Sequence[SeedGroup],
    table: ComparisonTable,
    options: argparse.Namespace,
) -> None:
    """Write the plot of the table's first metric."""
    from kd_lightning.compare.plot import costs_of_groups, write_plot

    # The table has one row per run and metric; the plot shows one metric.
    metric = table.rows[0]["metric"]
    rows = [row for row in table.rows if row["metric"] == metric]
    costs = None
    if options.against:
        labels = {row["run"] for row in rows}
        plotted = [group for group in groups if group.label in labels]
        costs = costs_of_groups(plotted, options.against)
    write_plot(options.plot, rows, options.against, costs)


def _check(options: argparse.Namespace) -> None:
    if options.diff:
        _check_diff(options)
        return
    if options.against and not options.plot:
        raise UserError("kd compare: --against belongs to --plot FILE")
    if options.plot:
        from kd_lightning.compare.plot import check_plot_path

        check_plot_path(options.plot)
    # The table has one source: folders, or a W&B project.
    if bool(options.runs) == bool(options.wandb):
        raise UserError(
            "kd compare: give folders of runs or experiments, before all options, "
            "or --wandb ENTITY/PROJECT"
        )
    if options.group and not options.wandb:
        raise UserError(
            "kd compare: --group selects runs of --wandb; without it, name the folders to compare"
        )


def _check_diff(options: argparse.Namespace) -> None:
    """Refuse options that --diff would ignore."""
    ignored = {
        "runs or experiments": options.runs,
        "--wandb": options.wandb,
        "--group": options.group,
        "--metrics": options.metrics,
        "--by": options.by,
        "--baseline": options.baseline,
        "--plot": options.plot,
        "--against": options.against,
    }
    # An option without effect is most likely a mistake.
    for name, value in ignored.items():
        if value:
            raise UserError(f"kd compare: --diff A B stands alone; remove {name}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written ({error.strerror})"
        ) from error


def build_table(
    groups: list[SeedGroup],
    notes: Sequence[str],
    options: argparse.Namespace,
) -> ComparisonTable:
    """Compute rows, tests and notes.

    Args:
        groups: of runs.
        notes: on the groups.
        options: of the command.

    Raises:
        UserError: if there is nothing that can be compared.
    """
    from kd_lightning.compare.baseline import baseline_notes, compare_to_baseline
    from kd_lightning.compare.metrics import choose_metrics, table_rows
    from kd_lightning.compare.output import ComparisonTable

    metrics, groups, metric_notes = choose_metrics(groups, options.metrics)
    comparisons = []
    if options.baseline:
        # Only one metric is tested, because Holm's correction grows with the number of tests.
        comparisons = compare_to_baseline(groups, options.baseline, metrics[0])
    rows = table_rows(groups, metrics)
    all_notes = [*baseline_notes(comparisons), *notes, *metric_notes]
    return ComparisonTable(rows, comparisons, all_notes)


def _read_groups(options: argparse.Namespace) -> tuple[list[SeedGroup], list[str]]:
    """The groups that the arguments name, and notes."""
    if options.wandb:
        from kd_lightning.compare.wandb import read_wandb

        # Reading comes before the next import, so that a missing key is reported at once.
        runs = read_wandb(options.wandb, options.group)
        from kd_lightning.compare.groups import group_runs

        return group_runs(runs, options.by)

    from kd_lightning.compare.names import find_results, nothing_to_compare

    folders = []
    results = {}
    others = []
    for name in dict.fromkeys(options.runs):
        path = find_results(name)
        if path is not None:
            results[name] = path
        elif (Path(name) / "run.json").exists():
            folders.append(name)
        elif Path(name).exists() and len(options.runs) > 1:
            # A shell makes such a list of `runs/*`.
            others.append(name)
        else:
            raise nothing_to_compare(name)
    if not folders and not results:
        raise nothing_to_compare(others[0])
    if others and results and folders:
        # `runs/*` also names the results of experiments.
        others += results
        results = {}
    if not results:
        groups, notes = _groups_of_folders(folders, options.by)
        if others:
            notes.append(f"Skipped what is not a run: {', '.join(others)}.")
        return groups, notes
    if folders:
        raise UserError(
            f"kd compare: {folders[0]} is a run and {next(iter(results))} an experiment; "
            "compare one kind at a time"
        )
    if options.by:
        raise UserError(
            "kd compare: --by groups runs; experiments have rows of their own"
        )
    return _groups_of_experiments(results)


def _groups_of_experiments(
    results: dict[str, Path],
) -> tuple[list[SeedGroup], list[str]]:
    """The rows of experiments, and their notes.

    Args:
        results: the results.json of each experiment, by its name.
    """
    from kd_lightning.compare.experiment_results import read_results

    groups: list[SeedGroup] = []
    notes = []
    for name, path in results.items():
        prefix = f"{name}: " if len(results) > 1 else ""
        experiment_groups, note = read_results(path, prefix)
        groups += experiment_groups
        if note:
            notes.append(note)
    return groups, notes


def _groups_of_folders(
    folders: Sequence[str], by: Sequence[str]
) -> tuple[list[SeedGroup], list[str]]:
    """The groups of runs in folders, and notes; teacher caches are skipped."""
    from kd_lightning.compare.groups import group_runs
    from kd_lightning.compare.runs import read_run
    from kd_lightning.runs.folder import RunFolder

    runs = []
    caches = []
    for name in folders:
        if RunFolder(Path(name)).is_cache:
            caches.append(name)
        else:
            runs.append(read_run(name))
    if not runs:
        raise UserError(
            f"{folders[0]} is not a run but a teacher's cache; give folders of runs"
        )
    groups, notes = group_runs(runs, by)
    if caches:
        notes.append(f"Skipped teacher caches: {', '.join(caches)}.")
    return groups, notes
