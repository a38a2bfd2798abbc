"""One kind of run of an experiment, and the runs that its grid stands for."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class RunSpec:
    """One kind of run, repeated over seeds.

    Attributes:
        name: teacher, student-alone, distilled, ...
        configs: YAML files, composed after those of the experiment.
        overrides: `key: value`, applied after those of the experiment.
        needs: config key -> the run whose last checkpoint (or cache) is its value. `NAME` is the
            run of the same seed, `NAME@0` that of seed 0, `NAME@+1` that of the next seed (a
            teacher that must not share its student's initial weights), `NAME@*` a list of all its
            seeds. A list names several runs.
        seeds: the seeds, if they differ from those of the experiment.
        grid: config key -> values: one run per combination.
        cache: options of `kd cache` (views, top_k, dtype). If given, the run does not train but
            caches the outputs of the teacher of the pair that the configs compose.
        may_fail: whether a seed whose training diverges counts as finished, without metrics.
    """

    name: str
    configs: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, str | list[str]] = field(default_factory=dict)
    seeds: list[int] | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    cache: dict[str, Any] | None = None
    may_fail: bool = False

    @property
    def needed_names(self) -> list[str]:
        """The names of all runs in `needs`, without seeds."""
        names: list[str] = []
        for value in self.needs.values():
            needed = value if isinstance(value, list) else [value]
            for reference in needed:
                name, _, _ = reference.partition("@")
                names.append(name)
        return names

    @property
    def combinations(self) -> int:
        """The number of runs that `expanded` returns."""
        return math.prod(len(values) for values in self.grid.values())

    def expanded(self) -> list[RunSpec]:
        """Return one run per combination of the grid's values, with the values in its name."""
        runs = []
        for values in itertools.product(*self.grid.values()):
            combination = dict(zip(self.grid, values, strict=True))
            name = self.name
            for key, value in combination.items():
                # The full key would make the name too long for a table.
                last_part = key.rpartition(".")[2]
                name += f" {last_part}={value}"
            overrides = {**self.overrides, **combination}
            runs.append(replace(self, name=name, overrides=overrides, grid={}))
        return runs
