"""The `kd` command line. Each command imports the slow modules that it needs."""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from kd_lightning import __version__
from kd_lightning.errors import UserError, printable

if TYPE_CHECKING:
    import traceback

COMMANDS = {
    "init": "write a project to start from: kd init [DIR] [--images FOLDER]",
    "fit": "train a teacher, a baseline or a student: kd fit -c FILE.yaml ... [--key=value ...]",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test set",
    "predict": "predict files: kd predict RUN|EXPORT INPUT... | the test set: --ckpt_path FILE",
    "export": "write the student of a run as ONNX, torch.export or safetensors: kd export RUN",
    "benchmark": "measure size, latency and memory side by side: kd benchmark RUN|EXPORT ...",
    "serve": "answer requests over HTTP with a network: kd serve RUN|EXPORT",
    "cache": "compute and store a teacher's outputs: kd cache -c FILE.yaml ... --output DIR",
    "reproduce": "run an experiment and print its table: kd reproduce EXPERIMENT | --list",
    "compare": "print a table over seeds: kd compare RUN... | EXPERIMENT | --wandb ENTITY/PROJECT",
    "report": "write one HTML page about runs or an experiment: kd report RUN|EXPERIMENT ...",
    "list": "list what is available: kd list methods|models|data|experiments|configs [NAME] [--json]",
    "demo": "the first experiment, in a minute: the same as kd reproduce demo",
}
RUNS = ("fit", "validate", "test", "predict")
MODULES = {
    "init": "kd_lightning.projects.command",
    "export": "kd_lightning.export.command",
    "benchmark": "kd_lightning.export.benchmark_command",
    "serve": "kd_lightning.serving.serve_command",
    "cache": "kd_lightning.runs.cache_command",
    "reproduce": "kd_lightning.experiments.command",
    "compare": "kd_lightning.compare.command",
    "report": "kd_lightning.report.command",
    "list": "kd_lightning.catalog",
}
"""The module whose `main` takes a command's arguments; it is imported if the command runs."""

PREDICTS_INPUTS = "kd_lightning.serving.predict_command"
"""The module of `kd predict RUN|EXPORT INPUT...`."""

_NO_MEMORY = (
    "there is not enough memory; use a smaller batch size (--data.batch_size), less data, or "
    "--trainer.precision=bf16-mixed"
)

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
    lines.append(
        "kd COMMAND --help describes a command; kd --version prints the version."
    )
    lines.append(
        "kd fit --model.losses.help KD lists the options of a loss; kd fit --data.help CLASS,"
    )
    lines.append(
        "--model.help CLASS and --model.teacher.help CLASS those of other classes."
    )
    lines.append(
        "--trust PACKAGE lets checkpoints and run folders name classes of a package."
    )
    lines.append("")
    return "\n".join(lines) + "\n" + _FIRST_STEPS


def dispatch(argv: list[str]) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the command's name and its arguments.

    Raises:
        UserError: if the command is unknown, or the user made a mistake in its arguments.
    """
    from kd_lightning.trust import take_trust_options

    argv = take_trust_options(argv)
    command = argv[0] if argv else "--help"
    arguments = argv[1:]
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
    elif command in ("--version", "version"):
        print(f"kd_lightning {__version__}")
    elif command == "demo":
        _run(MODULES["reproduce"], ["demo", *arguments])
    elif command == "predict" and _names_inputs(arguments):
        _run(PREDICTS_INPUTS, arguments)
    elif command in RUNS:
        # These commands share a module, which needs to know which of them it runs.
        _run("kd_lightning.runs.command", argv)
    elif command in MODULES:
        _run(MODULES[command], arguments)
    else:
        raise UserError(_unknown_command(command))
    return 0


def _run(module: str, arguments: list[str]) -> None:
    """Import the module of a command and call its `main`."""
    import_module(module).main(arguments)


def _names_inputs(arguments: list[str]) -> bool:
    """Whether `kd predict` is given inputs of the user's own."""
    is_given: bool = import_module(PREDICTS_INPUTS).names_inputs(arguments)
    return is_given


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
        The exit code: 2 for a user's mistake, 130 if interrupted, 1 for an internal error, else
        that of the command.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        code = dispatch(argv)
        # Flushed here, so that a closed pipe is handled below instead of at interpreter exit.
        sys.stdout.flush()
        return code
    except UserError as error:
        return _report(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _report(str(interrupt) or "interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has exited, as in `kd list | head`. Python flushes standard
        # output once more at exit, which must not fail again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        return 0
    except MemoryError:
        return _report(_NO_MEMORY, 2)
    except OSError as error:
        if error.errno is None:
            return _report_internal_error(error, argv)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Files are written whole or not at all, so what was there before is intact.
            place = f" for {error.filename}" if error.filename else ""
            return _report(f"there is no space left on the disk{place}; free some", 2)
        return _report(
            f"{error.strerror}: {error.filename or 'a file of this command'}", 2
        )
    except Exception as error:
        if _is_memory_error(error):
            return _report(_NO_MEMORY, 2)
        return _report_internal_error(error, argv)


def _is_memory_error(error: Exception) -> bool:
    """Whether torch found no memory on a GPU or for the CPU, which is no MemoryError of Python."""
    # By name: importing torch takes seconds, and most commands fail without it.
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _report(message: str, code: int) -> int:
    """Print the one line on standard error that a failed command leaves; returns the exit code."""
    print(f"kd: {printable(message)}", file=sys.stderr)
    return code


def _report_internal_error(error: Exception, argv: list[str]) -> int:
    """Save the traceback of an unexpected error, and say where; returns the exit code."""
    import tempfile
    import traceback

    from kd_lightning.masking import masked_command

    if os.environ.get("KD_DEBUG"):
        raise error
    command = " ".join(masked_command(["kd", *argv]))
    lines = traceback.format_exception(error)
    content = f"kd_lightning {__version__}\nPython {sys.version}\n{command}\n\n{''.join(lines)}"
    with tempfile.NamedTemporaryFile(
        "w", prefix="kd-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(content)
    summary = f"{type(error).__name__}: {printable(str(error))[:200]}"
    own_code = _line_of_users_code(traceback.extract_tb(error.__traceback__))
    if own_code is not None:
        return _report(
            f"{own_code} raised {summary}; the traceback is in {file.name}", 1
        )
    return _report(
        f"internal error in kd_lightning {__version__}: {summary}; please report it with "
        f"{file.name}, which holds the command and the traceback",
        1,
    )


def _line_of_users_code(frames: traceback.StackSummary) -> str | None:
    """The file and line of the user's own code that an error comes from; `None` if it is ours.

    The innermost frame often lies in torch, which whoever calls it with wrong arguments causes.
    """
    import sysconfig
    from pathlib import Path

    package = Path(__file__).resolve().parent
    standard_library = Path(sysconfig.get_path("stdlib")).resolve()
    for frame in reversed(frames):
        path = Path(frame.filename).resolve()
        if path.is_relative_to(package):
            return None
        installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        if installed or path.is_relative_to(standard_library) or not path.is_file():
            continue
        return f"{path}:{frame.lineno}"
    return None


def use_current_folder() -> None:
    """Let Python import the user's own modules from the current folder, after installed packages.

    `python -m` puts the folder first and the `kd` script omits it. Last is safe: no file of the
    folder can take the place of an installed package.
    """
    folder = os.getcwd()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", folder)]
    sys.path.append(folder)


def entry() -> None:
    """The entry point of the `kd` script."""
    use_current_folder()
    try:
        code = main()
    except KeyboardInterrupt:
        # A second signal came while the first one was reported.
        code = 130
    # What remains is the end of the interpreter, where a second signal would print a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
