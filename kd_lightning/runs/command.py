"""The commands `kd fit`, `validate`, `test` and `predict`."""

from __future__ import annotations

from kd_lightning.runs.configs import resolve_configs, with_own_config
from kd_lightning.runs.short_help import ALL, SHORT, short_help


def execute(argv: list[str]) -> None:
    """Run the arguments of one `kd` command, as an experiment lists them.

    Args:
        argv: the command's name and its arguments.

    Raises:
        UserError: for a user's mistake.
    """
    if argv[0] == "cache":
        from kd_lightning.runs.cache_command import main as cache

        cache(argv[1:])
        return
    from kd_lightning.runs.launch import launch

    launch(argv)


def main(argv: list[str]) -> None:
    """Run `kd fit`, `validate`, `test` or `predict` and report the result.

    Args:
        argv: the command's name and its arguments.

    Raises:
        UserError: for a user's mistake.
    """
    if any(argument in SHORT for argument in argv):
        print(short_help(argv[0]), end="")
        return
    # The parser knows its complete help by the usual name.
    argv = ["--help" if argument == ALL else argument for argument in argv]
    # Before torch is imported, so that a mistyped path is reported at once.
    arguments = resolve_configs(with_own_config(argv))
    from kd_lightning.runs.folder import is_main
    from kd_lightning.runs.launch import launch_resolved
    from kd_lightning.runs.report import report

    result = launch_resolved(arguments)
    if is_main():
        report(argv[0], result)
