from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.analyses.ties import tie_groups
from kd_lightning.experiments.analysis import Finished


@pytest.mark.parametrize(
    ("most", "expected"), [(False, [1, 1, 1, 2, 3]), (True, [3, 3, 3, 2, 1])]
)
def test_runs_whose_seeds_overlap_are_tied(
    most: bool, expected: list[int], tmp_path: Path
) -> None:
    errors: dict[str, list[float]] = {
        "a": [1, 5],
        "b": [4, 8],
        "chained": [8, 9],
        "alone": [10, 12],
        "last": [13, 13.5],
    }
    runs = {
        n: [
            Finished(seed, tmp_path, {"test_errors": v})
            for seed, v in enumerate(errors[n])
        ]
        for n in errors
    }
    rows = tie_groups(runs, tmp_path, "test_errors", list(errors), most)
    found = {row.run: row.values[0] for row in rows}
    assert [found[name] for name in errors] == expected
