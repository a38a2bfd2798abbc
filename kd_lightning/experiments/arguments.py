"""The arguments of `kd reproduce`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from kd_lightning.errors import UserError
from kd_lightning.yaml_files import read_yaml


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"kd reproduce: {message}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that all experiments share."""
    options = _Parser(
        "kd reproduce",
        description="Run an experiment: train the missing runs and print its table.",
        # The settings of an experiment are options, too, and may begin like one of these.
        allow_abbrev=False,
    )
    _add_selection(options)
    _add_execution(options)
    _add_folders(options)
    return options


def _add_selection(options: argparse.ArgumentParser) -> None:
    """Add what decides which runs of which experiment are executed."""
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


def _add_execution(options: argparse.ArgumentParser) -> None:
    """Add how the runs are executed."""
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


def _add_folders(options: argparse.ArgumentParser) -> None:
    """Add where data is read from, and where runs and results are stored."""
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


def setting_words(words: list[str]) -> list[str]:
    """Turn `--NAME VALUE` and `--NAME=VALUE` into `NAME=VALUE`.

    The names are those of an experiment's settings, which the parser does not know.

    Args:
        words: that the parser left over.

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
        # `--NAME VALUE`: the value is the next word.
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

    Args:
        words: of `--set` and of `setting_words`.

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
