"""The metrics of an experiment over its seeds, for the card of one of its runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kd_lightning.errors import UserError
from kd_lightning.values import Value, Values


@dataclass(frozen=True)
class Spread:
    """A metric over seeds.

    Attributes:
        metric: its name.
        mean: over the seeds.
        std: the standard deviation; `None` with one seed.
        seeds: how many there are.
    """

    metric: str
    mean: float
    std: float | None
    seeds: int

    def __str__(self) -> str:
        if self.std is None:
            return f"{self.mean:.6g}"
        return f"{self.mean:.6g} ± {self.std:.2g}"


def read_spread(choice: str) -> list[Spread]:
    """The metrics of one run of an experiment.

    Args:
        choice: `RESULTS.json#RUN`, or `RESULTS.json` if it holds one run only.

    Raises:
        UserError: if there is no such file or run.
    """
    name, _, run = choice.partition("#")
    path = Path(name).expanduser()
    rows = _rows(path)
    runs = list(dict.fromkeys(str(row["run"]) for row in rows))
    if not run and len(runs) == 1:
        run = runs[0]
    if run not in runs:
        wrong = f"has no run {run!r}" if run else "has several runs"
        raise UserError(
            f"--experiment: {path} {wrong}; give {path}#RUN with one of "
            f"{', '.join(runs)}"
        )
    found = []
    for row in rows:
        mean = row["mean"]
        # A metric that is not finite in one seed has no spread.
        if row["run"] == run and isinstance(mean, float | int) and math.isfinite(mean):
            std = cast("float | None", row["std"])
            found.append(Spread(str(row["metric"]), mean, std, cast(int, row["n"])))
    return found


def _rows(path: Path) -> list[Values]:
    if not path.is_file():
        raise UserError(f"--experiment: there is no file {path}")
    try:
        content: Value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"--experiment: {path} is no JSON; give a results.json"
        ) from error
    rows = content.get("rows") if isinstance(content, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"--experiment: {path} holds no rows; give the results.json of kd reproduce"
        )
    for row in rows:
        if not isinstance(row, Mapping) or not {
            "run",
            "metric",
            "mean",
            "std",
            "n",
        } <= set(row):
            raise UserError(f"--experiment: {path} is no results.json of kd reproduce")
    return cast("list[Values]", rows)
