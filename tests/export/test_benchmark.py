"""`kd benchmark`: what is measured of runs and exports, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_lightning.export import latency
from tests.runs import Kd


def test_a_run_and_its_export_side_by_side(run: Path, kd: Kd, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    exported = kd(
        "export", str(run), "--format", "torch-export", "--output", str(folder)
    )
    assert exported.code == 0, exported.err

    outcome = kd(
        *("benchmark", str(run), str(folder), "--rounds", "1"),
        *("--output", "table.json"),
    )

    assert outcome.code == 0, outcome.err
    checkpoint, export = json.loads(Path("table.json").read_text())
    assert (checkpoint["kind"], export["kind"]) == ("checkpoint", "torch-export")
    # 64 inputs, two layers of 256 and 10 outputs, with biases.
    parameters = 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert checkpoint["parameters"] == export["parameters"] == parameters
    assert export["flops"] == 2 * (64 * 256 + 256 * 256 + 256 * 10)
    assert export["file_bytes"] == (folder / "student.pt2").stat().st_size
    for row in (checkpoint, export):
        assert 0 < row["p50_ms_batch_1"] <= row["p95_ms_batch_1"]
        assert row["per_second_batch_64"] > 0
    assert "samples/s" in outcome.out


def test_throughput_and_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of 2 ms with 4 samples makes 2,000 samples per second."""
    now = iter(range(1_000_000))

    def clock() -> float:
        # Each pass reads the clock at its start and its end, and once before it.
        return next(now) * 0.002

    monkeypatch.setattr("kd_lightning.export.latency.time.perf_counter", clock)
    monkeypatch.setattr(latency, "_energy_uj", iter([1_000, 9_000]).__next__)
    sample = (torch.zeros(1, 3),)
    seen = []

    def predict(raw: tuple[Tensor, ...]) -> Tensor:
        seen.append(len(raw[0]))
        return raw[0]

    timing = latency.measure_passes(predict, sample, 4)

    assert set(seen) == {4}
    assert timing.p50_ms == pytest.approx(2)
    assert timing.p95_ms == pytest.approx(2)
    assert timing.per_second == pytest.approx(2000)
    passes = len(seen) - latency.WARM_UP_PASSES
    # 8,000 microjoules are 8 millijoules.
    assert timing.millijoules == pytest.approx(8 / (4 * passes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "there is no run, checkpoint or export missing"),
        (["{run}", "--rounds", "0"], "--rounds must be at least 1"),
        (["empty"], "empty cannot be measured"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, run: Path, kd: Kd
) -> None:
    Path("empty").mkdir()

    outcome = kd("benchmark", *(argument.format(run=run) for argument in arguments))

    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
