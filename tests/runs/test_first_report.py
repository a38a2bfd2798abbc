"""The first-batch report as a user of `kd fit` sees it, and the capture of a step that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.runs import Kd, student


class Unfit(nn.Module):
    """A teacher that gives every image the same logits: 0, or NaN if its weight is -1."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, images: Tensor) -> Tensor:
        logit = 0 * self.value / (self.value + 1)
        return logit.expand(len(images), 10)


UNFIT = "--model.teacher.network=tests.runs.test_first_report.Unfit"


def record(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(f"runs/{name}/run.json").read_text())
    return content


def unfit(folder: Path, value: float) -> list[str]:
    """Arguments that distil a teacher of that one value."""
    path = folder / "unfit.pt"
    torch.save({"value": torch.tensor(value)}, path)
    return [*student(path), UNFIT]


def test_the_report_is_shown_and_stored(teacher: Path, kd: Kd) -> None:
    outcome = kd(*student(teacher), "--run.name=shown")
    assert outcome.code == 0
    assert outcome.err == ""
    assert "teacher on 123 samples of validation" in outcome.out
    assert "share of gradient" in outcome.out
    report = record("shown")["report"]
    assert report["teacher"]["metric"] == "accuracy"
    assert sum(loss["gradient_share"] for loss in report["losses"].values()) > 0.99
    assert "report/" not in Path("runs/shown/metrics.csv").read_text()
    # A resumed run keeps the report and makes no other.
    last = "runs/shown/checkpoints/last.ckpt"
    outcome = kd("fit", f"--ckpt_path={last}")
    assert "share of gradient" not in outcome.out
    assert record("shown")["report"] == report


def test_the_report_changes_no_number_and_can_be_turned_off(
    teacher: Path, kd: Kd
) -> None:
    assert kd(*student(teacher), "--run.name=with").code == 0
    outcome = kd(*student(teacher), "--run.name=without", "--run.report=false")
    assert outcome.code == 0
    assert "share of gradient" not in outcome.out
    assert record("without")["report"] is None
    tables = [
        Path(f"runs/{name}/metrics.csv").read_bytes() for name in ("with", "without")
    ]
    assert tables[0] == tables[1]


def test_strict_is_exit_2_in_one_line(kd: Kd, tmp_path: Path) -> None:
    arguments = unfit(tmp_path, 0.0)
    outcome = kd(*arguments, "--run.name=strict", "--run.strict=true")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("kd: --run.strict: the teacher gives all 123 rows")
    assert record("strict")["status"] == "failed"
    assert len(record("strict")["report"]["warnings"]) > 0
    outcome = kd(
        *arguments, "--run.name=lenient", "--trainer.enable_progress_bar=false"
    )
    assert outcome.code == 0
    assert "warning: the teacher gives all 123 rows" in outcome.out


def test_a_capture_lies_in_the_run_folder(kd: Kd, tmp_path: Path) -> None:
    outcome = kd(*unfit(tmp_path, -1.0), "--run.name=broken")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "'kd' is nan because the teacher's logits are not finite" in outcome.err
    path = Path("runs/broken/capture-epoch0-batch0.pt")
    assert path.name in outcome.err
    content = torch.load(path, weights_only=True)
    assert "KD" in content["config"]
