"""What the names on the command line of `kd compare` stand for.

Imports nothing slow, so that a mistyped name is reported at once.
"""

from __future__ import annotations

from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.experiments.spec import find


def find_results(name: str) -> Path | None:
    """The results.json of an experiment.

    Args:
        name: the experiment, the folder of its results, or the file itself.

    Returns:
        None if the name is a run, or if there are no results.
    """
    path = Path(name)
    if (path / "run.json").exists():
        return None
    default = Path("runs") / name.removesuffix(".yaml")
    for candidate in (path, path / "results.json", default / "results.json"):
        if candidate.name == "results.json" and candidate.is_file():
            return candidate
    return None


def nothing_to_compare(name: str) -> UserError:
    """The error for a name that is neither a run nor an experiment with results."""
    if Path(name).is_dir():
        return UserError(
            f"{name} is not a run: it has no run.json (and no results.json); "
            f"give folders of runs, such as {name}/*"
        )
    try:
        find(name)
    except UserError:
        return UserError(
            f"no run or experiment is called {name!r}; "
            "kd list experiments lists experiments, and runs/ holds runs"
        )
    return UserError(
        f"the experiment {name} has no results yet; make them with: kd reproduce {name}"
    )
