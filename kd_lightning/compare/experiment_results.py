"""Groups to compare from the results.json of experiments that `kd reproduce` has run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from kd_lightning.errors import UserError
from kd_lightning.experiments.measurements import ResultRow, SeedGroup, SeedResult
from kd_lightning.experiments.spec import find
from kd_lightning.runs.folder import RunFolder, read_json


def find_results(name: str) -> Path | None:
    """The results.json of an experiment.

    Args:
        name: the experiment, the folder of its results, or the file itself.

    Returns:
        None if the name is a run, or if there are no results.
    """
    path = Path(name)
    if RunFolder(path).record_path.exists():
        return None
    default = Path("runs") / name.removesuffix(".yaml")
    for candidate in (path, path / "results.json", default / "results.json"):
        if candidate.name == "results.json" and candidate.is_file():
            return candidate
    return None


def read_results(path: Path, prefix: str = "") -> tuple[list[SeedGroup], str]:
    """Read an experiment's results.json.

    Args:
        path: the file.
        prefix: what to put before the names of runs.

    Returns:
        One group per run of the experiment, and the experiment's note.

    Raises:
        UserError: if the file is not one that `kd reproduce` writes.
    """
    content = read_json(path)
    try:
        rows = []
        for row in content["rows"]:
            rows.append(_read_row(row))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged; write it again with kd reproduce") from error
    return groups_of_rows(rows, prefix), content.get("note") or ""


def _read_row(row: dict[str, Any]) -> ResultRow:
    # A conversion that fails shows that the file is damaged.
    checked = {
        **row,
        "run": str(row["run"]),
        "metric": str(row["metric"]),
        "values": list(map(float, row["values"])),
    }
    return cast(ResultRow, checked)


def groups_of_rows(rows: Sequence[ResultRow], prefix: str = "") -> list[SeedGroup]:
    """Collect the metrics of each run and seed."""
    groups: dict[str, SeedGroup] = {}
    for row in rows:
        name = row["run"]
        group = groups.setdefault(name, SeedGroup(prefix + name, []))
        group.paper = {**group.paper, row["metric"]: row.get("paper")}
        # A row without seeds has them in the order of the runner, which counts from 0.
        seeds = row.get("seeds") or range(len(row["values"]))
        for seed, value in zip(seeds, row["values"], strict=False):
            result = _result_of_seed(group, seed)
            result.metrics = {**result.metrics, row["metric"]: value}
    return list(groups.values())


def _result_of_seed(group: SeedGroup, seed: int) -> SeedResult:
    for result in group.results:
        if result.seed == seed:
            return result
    result = SeedResult(seed, {})
    group.results.append(result)
    return result


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
