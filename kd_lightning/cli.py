"""The `kd` command line. Each command imports the slow modules that it needs."""

from __future__ import annotations

import difflib
import os
import signal
import sys

from kd_lightning import __version__
from kd_lightning.errors import UserError

COMMANDS = {
    "fit": "train a teacher, a baseline or a student: kd fit -c FILE.yaml ... [--key=value ...]",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test set",
    "predict": "write the logits of a checkpoint for the test set",
    "cache": "compute and store a teacher's outputs: kd cache -c FILE.yaml ... --output DIR",
    "reproduce": "run an experiment and print its table: kd reproduce EXPERIMENT | --list",
    "compare": "print a table over seeds: kd compare RUN... | EXPERIMENT | --wandb ENTITY/PROJECT",
    "list": "list what is available: kd list methods|models|data|experiments [--json]",
}
RUNS = ("fit", "validate", "test", "predict")

_FIRST_STEPS = """\
first steps:
  kd reproduce demo
  kd fit -c configs/trainer.yaml -c configs/data/digits.yaml -c configs/teachers/digits_mlp.yaml
"""


def usage() -> str:
    """The text of `kd --help`."""
    width = max(map(len, COMMANDS))
    lines = [
        f"kd {__version__}: knowledge distillation on PyTorch Lightning",
        "",
        "usage: kd COMMAND ...",
        "",
    ]
    for name, text in COMMANDS.items():
        lines.append(f"  {name:<{width}}  {text}")
    lines.append("")
    lines.append("kd COMMAND --help describes a command; kd --version prints the version.")
    lines.append("")
    return "\n".join(lines) + "\n" + _FIRST_STEPS


def dispatch(argv: list[str]) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the command's name and its arguments.

    Raises:
        UserError: if the command is unknown, or the user made a mistake in its arguments.
    """
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
    elif command in ("--version", "version"):
        print(f"kd_lightning {__version__}")
    elif command == "list":
        from kd_lightning.catalog import main

        main(argv[1:])
    elif command == "reproduce":
        from kd_lightning.experiments.command import main as reproduce

        reproduce(argv[1:])
    elif command == "compare":
        from kd_lightning.compare.command import main as compare

        compare(argv[1:])
    elif command == "cache":
        from kd_lightning.runs.cache_command import main as cache

        cache(argv[1:])
    elif command in RUNS:
        from kd_lightning.runs.command import main as run

        run(argv)
    else:
        raise UserError(_unknown_command(command))
    return 0


def _unknown_command(command: str) -> str:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    if close:
        return f"unknown command {command!r}; did you mean {close[0]!r}?"
    return f"unknown command {command!r}; valid commands: {', '.join(COMMANDS)}"


def main(argv: list[str] | None = None) -> int:
    """Run `kd`.

    Args:
        argv: the arguments; by default those of this process.

    Returns:
        The exit code: 2 for a user's mistake, 130 if interrupted, else that of the command.
    """
    try:
        code = dispatch(sys.argv[1:] if argv is None else argv)
        # Flushed here, so that a closed pipe is handled below instead of at interpreter exit.
        sys.stdout.flush()
        return code
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"kd: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"kd: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has exited, as in `kd list | head`. Python flushes standard
        # output once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> None:
    """The entry point of the `kd` script."""
    try:
        code = main()
    except KeyboardInterrupt:
        # A second signal came while the first one was reported.
        code = 130
    # What remains is the end of the interpreter, where a second signal would print a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
