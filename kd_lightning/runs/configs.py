"""Finding the configs that a command names, and saying what is wrong with them."""

from __future__ import annotations

from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped


def check_config(path: Path, name: str) -> None:
    """UserError names a config that holds nothing that can be composed."""
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {name} is not YAML: {error}") from error
    if not content:
        raise UserError(f"the config file {name} is empty")
    if not isinstance(content, dict):
        raise UserError(f"the config file {name} holds a {type(content).__name__}, not keys with values")


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
            check_config(path, name)
            argument = f"--config={path}" if inline else str(path)
        takes = argument in ("-c", "--config") and not takes
        resolved.append(argument)
    return resolved


def with_own_config(argv: list[str]) -> list[str]:
    """A checkpoint of a run brings that run's config, where none is given."""
    if any(a in ("-c", "--config") or a.startswith("--config=") for a in argv):
        return argv
    for at, argument in enumerate(argv):
        value = argument.partition("=")[2] if argument.startswith("--ckpt_path=") else None
        value = argv[at + 1] if argument == "--ckpt_path" and at + 1 < len(argv) else value
        if value and (config := Path(value).parent.parent / "config.yaml").is_file():
            return [argv[0], "-c", str(config), *argv[1:]]
    return argv
