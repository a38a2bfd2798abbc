"""Groups to compare from the results.json of experiments that `kd reproduce` has run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from kd_lightning.errors import UserError
from kd_lightning.experiments.measurements import ResultRow, SeedGroup, SeedResult
from kd_lightning.runs.folder import read_json
from kd_lightning.values import Values


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
        raise UserError(
            f"{path} is damaged; write it again with kd reproduce"
        ) from error
    return groups_of_rows(rows, prefix), content.get("note") or ""


def _read_row(row: Values) -> ResultRow:
    """A row of results.json, with the entries that are read later checked."""
    # A conversion that fails shows that the file is damaged.
    checked = {
        **row,
        "run": str(row["run"]),
        "metric": str(row["metric"]),
        "values": list(map(float, cast(Iterable[float], row["values"]))),
    }
    return cast(ResultRow, checked)


def groups_of_rows(rows: Sequence[ResultRow], prefix: str = "") -> list[SeedGroup]:
    """Collect the metrics of each run and seed.

    Args:
        rows: of an experiment.
        prefix: what to put before the names of runs.
    """
    groups: dict[str, SeedGroup] = {}
    for row in rows:
        name = row["run"]
        new_group = SeedGroup(prefix + name, [])
        group = groups.setdefault(name, new_group)
        group.paper = {**group.paper, row["metric"]: row.get("paper")}
        # A row without seeds has them in the order of the runner, which counts from 0.
        seeds = row.get("seeds") or range(len(row["values"]))
        for seed, value in zip(seeds, row["values"], strict=False):
            result = _result_of_seed(group, seed)
            result.metrics = {**result.metrics, row["metric"]: value}
    return list(groups.values())


def _result_of_seed(group: SeedGroup, seed: int) -> SeedResult:
    """The result of a seed in a group; an empty one is added if there is none."""
    for result in group.results:
        if result.seed == seed:
            return result
    result = SeedResult(seed, {})
    group.results.append(result)
    return result
