"""The argument parser that `kd` commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from kd_lightning.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """Parses the arguments of one `kd` command; a mistake raises a UserError instead of exiting.

    Args:
        command: its name, such as "kd compare"; it starts every error message.
        usage: the usage line of `--help`; generated from the arguments if None.
        description: the first paragraph of `--help`.
    """

    def __init__(
        self,
        command: str,
        *,
        usage: str | None = None,
        description: str,
    ) -> None:
        # An abbreviation that works today would become ambiguous with the next option.
        super().__init__(
            command, usage=usage, description=description, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Report a mistake in the arguments.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.prog}: {message}")
