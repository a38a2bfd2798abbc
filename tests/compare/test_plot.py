"""`kd compare --plot`: formats, points against costs, and what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_lightning.cli import main
from kd_lightning.compare.plot import Point, plot_points, plot_rows
from kd_lightning.experiments.measurements import ResultRow, result_row
from tests.compare.comparing import refused, seeds

Capture = pytest.CaptureFixture[str]
T2 = {"model.losses.kd.temperature": 2.0}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows() -> list[ResultRow]:
    return [
        result_row("$small$", "test_accuracy", [0.5, 0.7], paper=0.65),
        result_row("large", "test_accuracy", [0.9], paper=None),
    ]


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_suffix_decides_the_format(
    suffix: str, start: bytes, place: Path, capsys: Capture
) -> None:
    runs = seeds(place, "four", [10, 12]) + seeds(place, "two", [8, 9], T2)
    assert main(["compare", *runs, "--plot", f"plot.{suffix}"]) == 0
    # The table is printed all the same.
    assert "temperature=2" in capsys.readouterr().out
    assert (place / f"plot.{suffix}").read_bytes().startswith(start)


def points_of(axes: Axes) -> list[list[list[float]]]:
    """The positions of the dots of each row: its seeds."""
    drawn = []
    for line in axes.lines:
        if line.get_marker() == "o":
            positions = np.asarray(line.get_xydata(), dtype=float)
            drawn.append(positions.tolist())
    return drawn


def test_points_are_seeds_at_their_cost() -> None:
    axes = Figure().subplots()
    points = [Point(rows()[0], 1000), Point(rows()[1], 50_000)]
    plot_points(axes, points, "parameters")
    assert points_of(axes) == [[[1000, 0.5], [1000, 0.7]], [[50_000, 0.9]]]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "parameters"
    assert axes.yaxis.get_major_formatter()(0.5) == "50.0%"
    assert axes.xaxis.get_major_formatter()(10_000) == "10k"


def test_networks_of_one_size_need_no_decades() -> None:
    axes = Figure().subplots()
    points = [Point(row, 5_000) for row in rows()]
    plot_points(axes, points, "file_bytes")
    # The heading of a size is in kilobytes.
    assert points_of(axes)[1] == [[5, 0.9]]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("linear", "file, kB")


def test_rows_are_below_each_other() -> None:
    axes = Figure().subplots()
    plot_rows(axes, rows())
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["$small$", "large"]
    assert points_of(axes) == [[[0.5, 0], [0.7, 0]], [[0.9, 1]]]
    top, bottom = axes.get_ylim()
    assert top > bottom


def test_against_a_recorded_cost(place: Path, capsys: Capture) -> None:
    results = []
    for run, errors, latency in (("a", 5.0, 0.1), ("b", 7.0, 2.0)):
        for metric, value in (
            ("test_errors", errors),
            ("latency_ms_batch_1", latency),
        ):
            row = result_row(run, metric, [value], paper=None)
            results.append(row)
    (place / "results.json").write_text(json.dumps({"rows": results, "note": ""}))

    arguments = ["compare", "results.json", "--plot", "plot.svg", "--against"]
    assert main([*arguments, "latency_ms_batch_1"]) == 0
    assert (place / "plot.svg").stat().st_size > 1000
    assert refused(capsys, *arguments[1:], "parameters").startswith(
        "kd: --against parameters: a has no record of it"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "plot.jpg"], "--plot plot.jpg: the suffix decides the format"),
        (["--plot", "no/plot.png"], "--plot no/plot.png: the folder no does not exist"),
        (["--against", "parameters"], "--against belongs to --plot FILE"),
        (
            ["--plot", "plot.png", "--against", "parameters"],
            "has no record of it; results of kd reproduce hold all costs",
        ),
    ],
)
def test_what_cannot_be_drawn(
    arguments: list[str], message: str, place: Path, capsys: Capture
) -> None:
    runs = seeds(place, "four", [10, 12])
    assert message in refused(capsys, *runs, *arguments)
    assert not (place / "plot.png").exists()
