"""`kd compare`."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kd_lightning.errors import UserError

if TYPE_CHECKING:
    from kd_lightning.compare.groups import Group

SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"kd compare: {message}")


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        "kd compare",
        usage="kd compare RUN... | EXPERIMENT... | --wandb ENTITY/PROJECT  [options]",
        description="One table over seeds: runs that differ in the seed alone are one row, mean ± standard deviation.",
        allow_abbrev=False,
    )
    made.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folders of runs, or experiments that kd reproduce has run",
    )
    made.add_argument("--wandb", metavar="ENTITY/PROJECT", help="the runs of a W&B project")
    made.add_argument(
        "--group",
        help="of W&B: those of this group alone; kd reproduce makes one for each experiment",
    )
    made.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        help="the test metrics that all runs have, where left out",
    )
    made.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="KEY",
        help="one row for each value of these settings, such as temperature",
    )
    made.add_argument(
        "--baseline",
        metavar="ROW",
        help="test the first metric's difference to the row of this label",
    )
    made.add_argument(
        "--format",
        choices=("terminal", "markdown", "csv", "json"),
        help="terminal, or what FILE ends with",
    )
    made.add_argument("--output", type=Path, metavar="FILE", help="write there instead")
    return made


def main(argv: list[str]) -> None:
    options = parser().parse_args(argv)
    if bool(options.runs) == bool(options.wandb):
        raise UserError(
            "kd compare: give folders of runs or experiments, before all options, or --wandb ENTITY/PROJECT"
        )
    if options.group and not options.wandb:
        raise UserError(
            "kd compare: --group chooses among the runs of --wandb; with folders, name those that you want"
        )
    form = options.format or SUFFIXES.get(
        options.output.suffix if options.output else "", "terminal"
    )
    content = compared(options)
    text = {"terminal": terminal, "markdown": markdown, "csv": csv_text, "json": json_text}[form](
        content
    )
    if options.output:
        try:
            options.output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--output {options.output} cannot be written ({error.strerror})"
            ) from error
    else:
        print(text, end="")
    if form == "csv":  # which has no place for notes
        print("".join(f"{note}\n" for note in content["notes"]), end="", file=sys.stderr)


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Rows and comparisons in the form of results.json, and notes.

    Raises:
        UserError: for whatever cannot be compared.
    """
    groups, notes = _groups(options)
    from kd_lightning.compare import baseline as compare_baseline
    from kd_lightning.compare import groups as compare

    metrics, groups, more = compare.choose_metrics(groups, options.metrics)
    notes += more
    found = (
        compare_baseline.against(groups, options.baseline, metrics[0]) if options.baseline else []
    )
    return {
        "rows": compare.rows(groups, metrics),
        "comparisons": [
            result.as_dict()
            | {"sentence": result.sentence(), "cell": compare_baseline.verdict(result)}
            for result in found
        ],
        "notes": [*compare_baseline.notes(found), *notes],
    }


def _groups(options: argparse.Namespace) -> tuple[list[Group], list[str]]:
    """The rows that the arguments name, and notes."""
    if options.wandb:
        from kd_lightning.compare.wandb import read_wandb

        runs = read_wandb(options.wandb, options.group)  # fails before anything slow is imported
        from kd_lightning.compare.groups import grouped

        return grouped(runs, options.by)
    from kd_lightning.compare.groups import from_results
    from kd_lightning.compare.runs import read_results, results_file, unknown

    results = {name: path for name in options.runs if (path := results_file(name))}
    for name in options.runs:
        if name not in results and not (Path(name) / "run.json").exists():
            raise unknown(name)
    if not results:
        return _of_folders(list(dict.fromkeys(options.runs)), options.by)
    if folders := [name for name in options.runs if name not in results]:
        raise UserError(
            f"kd compare: {folders[0]} is a run and {next(iter(results))} an experiment; compare one kind at a time"
        )
    if options.by:
        raise UserError("kd compare: --by is for runs; an experiment's rows are its own")
    contents = {name: read_results(path) for name, path in results.items()}
    groups = [
        group
        for n, c in contents.items()
        for group in from_results(c, f"{n}: " if len(contents) > 1 else "")
    ]
    return groups, [c["note"] for c in contents.values() if c.get("note")]


def _of_folders(folders: list[str], by: list[str]) -> tuple[list[Group], list[str]]:
    from kd_lightning.compare.groups import grouped
    from kd_lightning.compare.runs import is_cache, read_run

    caches = [name for name in folders if is_cache(Path(name))]
    if caches == folders:
        raise UserError(f"{folders[0]}: no run, but a teacher's cache; give folders of runs")
    groups, notes = grouped([read_run(name) for name in folders if name not in caches], by)
    return groups, notes + ([f"Left out: {', '.join(caches)} (teacher caches)."] if caches else [])


def cells(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of results.md, and a last column (a last line, where metrics are lines) of differences to the baseline."""
    from kd_lightning.experiments import results

    headings, lines = results.cells(content)
    if content["comparisons"]:
        told = {result["a"]: result["cell"] for result in content["comparisons"]}
        base = content["comparisons"][0]["b"]
        if headings[1] == "seeds":
            return [*headings, f"difference to {base}"], [
                [*line, told.get(line[0], "")] for line in lines
            ]
        lines = [*lines, [f"difference to {base}", *(told.get(run, "") for run in headings[1:])]]
    return headings, lines


def terminal(content: dict[str, Any]) -> str:
    from rich.console import Console

    from kd_lightning.experiments.tables import tables

    # As wide as the terminal; what is read by no person is never cut.
    out = io.StringIO()
    real = Console()
    console = Console(
        file=out,
        width=real.width if real.is_terminal else 1000,
        force_terminal=real.is_terminal,
        markup=False,
    )
    for table in tables(None, *cells(content), console.width):
        console.print(table)
    for sentence in _sentences(content):
        console.print(sentence, highlight=False, soft_wrap=not real.is_terminal)
    return out.getvalue()


def markdown(content: dict[str, Any]) -> str:
    headings, lines = cells(content)
    ruler = ["---", *["---:"] * (len(headings) - 1)]
    text = "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in [headings, ruler, *lines]
    )
    return f"{text}\n\nMean ± standard deviation over seeds.\n" + "".join(
        f"\n{s}\n" for s in _sentences(content)
    )


def _sentences(content: dict[str, Any]) -> Sequence[str]:
    return [*(f"{result['sentence']}." for result in content["comparisons"]), *content["notes"]]


def csv_text(content: dict[str, Any]) -> str:
    """A line a row and metric, values and seeds in the same order; the comparison in the lines of its metric."""
    tests = {(result["a"], result["metric"]): result for result in content["comparisons"]}
    tested = ("b", "mean", "low", "high", "p", "p_holm") if tests else ()
    names = ("run", "metric", "paper", "mean", "std", "n")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *names,
            "seeds",
            "values",
            *("baseline" if n == "b" else f"difference_{n}" for n in tested),
        ]
    )
    for row in content["rows"]:
        result = tests.get((row["run"], row["metric"]), {})
        listed = (" ".join(map(repr, row[name])) for name in ("seeds", "values"))
        writer.writerow(
            [*(row[name] for name in names), *listed, *(result.get(name) for name in tested)]
        )
    return out.getvalue()


def json_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
