"""The `kd` command. It imports nothing slow until a command needs it."""

from __future__ import annotations

import difflib
import os
import sys

from kd_lightning import __version__
from kd_lightning.errors import UserError

COMMANDS = {
    "fit": "train a teacher, a baseline or a student: kd fit -c FILE.yaml ... [--key=value ...]",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test set",
    "predict": "write a checkpoint's logits on the test set",
    "cache": "compute a teacher's outputs once and train from them: kd cache -c FILE.yaml ... --output DIR",
    "reproduce": "run a published experiment and print its table: kd reproduce EXPERIMENT; --list shows all",
    "compare": "one table over seeds: kd compare RUN... | EXPERIMENT | --wandb ENTITY/PROJECT",
    "list": "what there is: kd list methods|models|data|experiments [--json]",
}
RUNS = ("fit", "validate", "test", "predict")


def usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"kd {__version__}: knowledge distillation on PyTorch Lightning\n\nusage: kd COMMAND ...\n\n{commands}\n\n"
        "kd COMMAND --help tells more; kd --version prints the version.\n\n"
        "first steps:\n"
        "  kd reproduce demo\n"
        "  kd fit -c configs/trainer.yaml -c configs/data/digits.yaml -c configs/teachers/digits_mlp.yaml\n"
    )


def dispatch(argv: list[str]) -> int:
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
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; kd --help lists them"
        raise UserError(f"there is no command {command!r}{hint}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run `kd` and return its exit code: 2 for a user's mistake, 130 when interrupted."""
    try:
        code = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"kd: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"kd: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `kd list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> None:
    sys.exit(main())
