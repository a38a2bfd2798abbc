"""`kd fit|validate|test|predict`."""

from __future__ import annotations

from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped


def resolve_configs(argv: list[str]) -> list[str]:
    """Configs by their path, else by that path among the shipped ones; one that is missing or empty is named here."""
    resolved, takes = [], False
    for argument in argv:
        inline = argument.startswith("--config=")
        if takes or inline:
            name = argument.partition("=")[2] if inline else argument
            path = Path(name) if Path(name).is_file() else shipped(name)
            if path is None or not path.is_file():
                raise UserError(f"there is no config file {name}")
            if not path.read_text(encoding="utf-8", errors="replace").strip():
                raise UserError(f"the config file {name} is empty")
            argument = f"--config={path}" if inline else str(path)
        takes = argument in ("-c", "--config") and not takes
        resolved.append(argument)
    return resolved


def main(argv: list[str]) -> None:
    argv = resolve_configs(argv)
    from kd_lightning.runs.folder import is_main
    from kd_lightning.runs.launch import launch
    from kd_lightning.runs.report import report

    result = launch(argv)
    if is_main():
        report(argv[0], result)
