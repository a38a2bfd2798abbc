"""The options of `kd predict` for language models."""

from __future__ import annotations

import argparse

from kd_lightning.errors import UserError

MAX_NEW_TOKENS = 128
"""The longest completion, if the user gives none."""

_NAMES = ("max_new_tokens", "temperature", "top_p", "greedy", "seed", "drop_unfinished")


def add_completion_options(options: argparse.ArgumentParser) -> None:
    """Add the options of completions to a command.

    Args:
        options: of the command; changed in place.
    """
    # Defaults are `None`, so that the options can be refused for other networks.
    group = options.add_argument_group("language models")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="longest completion, with the token that ends a text; default: "
        f"{MAX_NEW_TOKENS}, or less if the model reads less",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="divides the logits before each draw; default: 1",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw among the likeliest tokens that together have probability P; "
        "default: 1",
    )
    group.add_argument(
        "--greedy",
        action="store_true",
        default=None,
        help="take the likeliest token instead of drawing one",
    )
    group.add_argument(
        "--seed", type=int, metavar="N", help="seed of the draws; default: 0"
    )
    group.add_argument(
        "--drop-unfinished",
        action="store_true",
        default=None,
        help="leave out completions that do not end within the longest length",
    )


def refuse_completion_options(options: argparse.Namespace, task: str) -> None:
    """Refuse options for language models with another network.

    Args:
        options: of the command.
        task: of the network.

    Raises:
        UserError: if one of them is given.
    """
    for name in _NAMES:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} is for language models; this network is for {task}"
            )
