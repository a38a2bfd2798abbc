"""`kd fit|validate|test|predict`."""

from __future__ import annotations

from typing import Any

from kd_lightning.runs.configs import resolve_configs


def execute(argv: list[str]) -> Any:
    """Run the arguments of one `kd` command, as an experiment lists them."""
    if argv[0] == "cache":
        from kd_lightning.runs.cache_command import main as cache

        return cache(argv[1:])
    from kd_lightning.runs.launch import launch

    return launch(argv)


def main(argv: list[str]) -> None:
    resolve_configs(argv)  # before anything slow is imported
    from kd_lightning.runs.folder import is_main
    from kd_lightning.runs.launch import launch
    from kd_lightning.runs.report import report

    result = launch(argv)
    if is_main():
        report(argv[0], result)
