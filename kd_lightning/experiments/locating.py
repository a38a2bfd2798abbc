"""Finds the YAML files of experiments."""

from __future__ import annotations

import difflib
from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped_root


def find(name: str) -> Path:
    """Return the path of an experiment's YAML, given its name or its path.

    Args:
        name: such as hinton2015/mnist, or a path.

    Raises:
        UserError: if there is no such experiment; the message names similar ones.
    """
    try:
        for path in (Path(name), experiments_root() / f"{name}.yaml"):
            if path.is_file():
                return path.absolute()
    except OSError as error:
        # For example a name that is too long.
        raise UserError(
            f"there is no experiment {name[:100]!r}: {error.strerror}"
        ) from None
    names = shipped_names()
    matches = difflib.get_close_matches(name, names, n=3)
    # `mnist` stands for hinton2015/mnist, and `hinton2015` for all of its experiments.
    for other in names:
        if name and name in other.split("/"):
            matches.append(other)
    hint = ""
    if matches:
        unique = list(dict.fromkeys(matches))
        hint = f"did you mean {' or '.join(unique[:3])}? "
    raise UserError(
        f"there is no experiment {name!r}; {hint}kd reproduce --list names all"
    )


def shipped_names() -> list[str]:
    """The names of the YAML files below experiments/."""
    root = experiments_root()
    names = []
    for path in sorted(root.rglob("*.yaml")):
        relative = path.relative_to(root)
        names.append(relative.with_suffix("").as_posix())
    return names


def experiments_root() -> Path:
    """The folder of the shipped experiments."""
    return shipped_root() / "experiments"
