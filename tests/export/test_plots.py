"""`kd benchmark --plot`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kd_lightning.errors import UserError
from kd_lightning.export.plots import Row, plot_metric_against_latency, plotted_metric
from tests.runs import Kd

ROWS: list[Row] = [
    {"network": "a$b", "kind": "checkpoint", "p50_ms_batch_1": 3.0, "test_errors": 9.0},
    {
        "network": "small",
        "kind": "onnx int8",
        "p50_ms_batch_1": 0.2,
        "test_errors": 12.0,
        "test_accuracy": 0.9,
    },
    {"network": "untested", "kind": "onnx", "p50_ms_batch_1": 1.0},
]


def test_the_metric_is_the_one_that_most_networks_have() -> None:
    assert plotted_metric(ROWS) == "test_errors"
    # Accuracy comes first if both are as common.
    assert plotted_metric(ROWS[1:]) == "test_accuracy"
    with pytest.raises(UserError, match="no network has one; test the runs"):
        plotted_metric(ROWS[2:])


def test_only_networks_with_the_metric_are_plotted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    points = []
    plot = Axes.plot

    def noted(self: Axes, *arguments: object, **options: object) -> object:
        points.append(arguments[:2])
        return plot(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", noted)

    plot_metric_against_latency(ROWS, tmp_path / "plot.png")

    assert points == [(3.0, 9.0), (0.2, 12.0)]
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 600


def test_another_suffix_is_refused_before_anything_is_measured(
    run: Path, kd: Kd
) -> None:
    outcome = kd("benchmark", str(run), "--plot", "plot.txt")

    assert outcome.code == 2
    assert "--plot must end in .png, .svg, .pdf, got plot.txt" in outcome.err
