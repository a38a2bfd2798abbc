"""`kd fit --help`: the options of the parser, and how to see those of classes."""

from __future__ import annotations

import re
from argparse import HelpFormatter
from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser

MODULE = "kd_lightning.DistillationModule"
"""The module whose options the help shows if the command names none."""

MAX_CLASSES = 100
"""A longer list of classes, such as that of all modules of torch, is not shown."""

CLASS_HELP = """
options of classes, each on a page of its own:
  kd fit --model.help kd_lightning.DistillationModule       or kd_lightning.ClassifierModule
  kd fit --model.losses.help KD                             see kd list methods
  kd fit --model.teacher.help ModelTeacher                  or EnsembleTeacher, CachedTeacher
  kd fit --model.network.help kd_lightning.models.MLP       see kd list models
  kd fit --data.help kd_lightning.data.MNISTDataModule      see kd list data
"""

_CLASSES = re.compile(r"known\s+subclasses:([\w.,\s]+)\)")
_PART_OF_DISTILLATION = re.compile(
    r"--model\.(?:student|teacher)(?:\.\w+)*\.help(?:=.*)?"
)


class RunParser(LightningArgumentParser):
    """A parser whose help is short enough to be read.

    Attributes:
        ending: printed below the help. The pages of classes, which get a parser of their own,
            have none.
    """

    ending = ""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help, without lists of hundreds of classes.

        Args:
            formatter: by default that of the parser; older versions of jsonargparse take none.
        """
        text = (
            super().format_help()
            if formatter is None
            else super().format_help(formatter)
        )
        return _CLASSES.sub(_cut, text) + self.ending


def _cut(match: re.Match[str]) -> str:
    """The list as it is, or how long it is and where to find the networks among its classes."""
    # Lines break within long names too.
    names = "".join(match[1].split()).split(",")
    if len(names) <= MAX_CLASSES:
        return match[0]
    indent = " " * 24
    return (
        f"known subclasses:\n{indent}{len(names)} in all; kd list models names the networks\n"
        f"{indent}of kd_lightning)"
    )


def with_module(arguments: Sequence[str]) -> list[str]:
    """Arguments in which help about a teacher or student comes after the module that has it.

    Without a module, the parser knows no `--model.teacher.help`.

    Args:
        arguments: after the command's name, with configs resolved.
    """
    for position, argument in enumerate(arguments):
        # The user or a config has chosen the module.
        if argument in ("-c", "--config", "--model", "--model.help"):
            break
        if argument.startswith(("--config=", "--model=", "--model.help=")):
            break
        if _PART_OF_DISTILLATION.fullmatch(argument) is not None:
            return ["--model.help", MODULE, *arguments[position:]]
    return list(arguments)
