"""Finding the configs that a command names, and saying what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped

MOVED = {
    "kd_lightning.data.SpecialistDataModule": "kd_lightning.specialists.SpecialistDataModule",
    "kd_lightning.data.spoken_digits.SpokenDigitsDataModule": "kd_lightning.data.SpokenDigitsDataModule",
    "kd_lightning.teachers.SpecialistTeacher": "kd_lightning.specialists.SpecialistTeacher",
    "kd_lightning.teachers.SubsetTeacher": "kd_lightning.specialists.SubsetTeacher",
}
"""Class paths of version 0.1 that have moved since; configs and run folders may still name them."""


def with_current_class_paths(config: Any) -> Any:
    """The same nested config, with every moved class under its current path."""
    if isinstance(config, dict):
        current = {key: with_current_class_paths(value) for key, value in config.items()}
        if isinstance(current.get("class_path"), str):
            current["class_path"] = MOVED.get(current["class_path"], current["class_path"])
        return current
    if isinstance(config, list):
        return [with_current_class_paths(item) for item in config]
    return config


def read_config(path: Path, name: str) -> dict[str, Any]:
    """A config's content; UserError names one that holds nothing that can be composed."""
    import yaml

    try:
        content = yaml.load(
            path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {name} is not YAML: {error}") from error
    if not content:
        raise UserError(f"the config file {name} is empty")
    if not isinstance(content, dict):
        raise UserError(
            f"the config file {name} holds a {type(content).__name__}, not keys with values"
        )
    return content


def losses_of(content: dict[str, Any]) -> dict[str, Any]:
    """The losses that a config names, by their entry."""
    found: Any = content
    for key in ("model", "init_args", "losses"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def resolve_configs(argv: list[str]) -> list[str]:
    """Configs by their path, else by that path among the shipped ones; one that is missing or empty is named here.

    Losses of several configs are taken together, which the parser alone would not do: where an entry is in two, the later
    one holds. A config that comes after losses and names more of them is therefore handed on as its content.
    """
    import yaml

    losses: dict[str, Any] = {}
    resolved, takes = [], False
    for argument in argv:
        inline = argument.startswith("--config=")
        if takes or inline:
            name = argument.partition("=")[2] if inline else argument
            path = Path(name) if Path(name).is_file() else shipped(name)
            if path is None or not path.is_file():
                raise UserError(f"there is no config file {name}")
            written = read_config(path, name)
            content = with_current_class_paths(written)
            given = str(path) if content == written else yaml.safe_dump(content, sort_keys=False)
            if own := losses_of(content):
                if losses:
                    content["model"]["init_args"]["losses"] = {**losses, **own}
                    given = yaml.safe_dump(content, sort_keys=False)
                losses |= own
            argument = f"--config={given}" if inline else given
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
