"""`kd report --wandb`: the page and its figures in the runs' own pages of W&B."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.errors import UserError
from kd_lightning.report.command import main


class FakeRun:
    """Stands for what `wandb.init` returns."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.logged: dict[str, Any] = {}
        self.finished = False

    def log(self, values: dict[str, Any]) -> None:
        self.logged.update(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", init)
    return runs


def test_the_page_and_its_figures_reach_the_run(
    distilled: Path, started: list[FakeRun], tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    main([str(distilled), "--output", str(output), "--wandb", "--no-data"])
    [run] = started
    own = json.loads((distilled / "run.json").read_text())["wandb"]
    assert run.arguments["id"] == own["id"]
    assert run.arguments["project"] == own["project"]
    assert run.arguments["mode"] == "offline"
    assert run.finished
    # The page itself, and a figure of each of these sections.
    assert {"report/page", "report/Learning curves", "report/Calibration"} <= set(
        run.logged
    )
    page = Path(run.logged["report/page"]._path).read_text()
    assert page == output.read_text()
    figure = Path(run.logged["report/Learning curves"]._path).read_text()
    assert "<svg" in figure
    # The page numbers the ids of its figures anew.
    lines = {line.strip() for line in figure.splitlines() if "kd-figure" not in line}
    assert len(lines) > 100
    assert lines <= {line.strip() for line in page.splitlines()}


def test_each_of_several_runs_gets_its_own_figures(
    distilled: Path, started: list[FakeRun], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(distilled, other)
    record = json.loads((other / "run.json").read_text())
    record["wandb"]["id"] = "abcd1234"
    (other / "run.json").write_text(json.dumps(record))
    output = tmp_path / "report.html"
    main([str(distilled), str(other), "--output", str(output), "--wandb", "--no-data"])
    assert [run.arguments["id"] == "abcd1234" for run in started] == [False, True]
    for run in started:
        assert "report/Calibration" in run.logged
        # The curves of both runs, and of this run alone.
        assert "report/Learning curves 2" in run.logged
        assert "report/Learning curves 3" not in run.logged


def test_switched_off_it_is_refused(distilled: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="WANDB_MODE=disabled"):
        main([str(distilled), "--output", str(tmp_path / "page.html"), "--wandb"])
    assert not (tmp_path / "page.html").exists()


def test_an_unnamed_run_is_refused(
    distilled: Path, started: list[FakeRun], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(distilled, other)
    record = json.loads((other / "run.json").read_text())
    del record["wandb"]
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"does not name the run in W&B"):
        main([str(other), "--output", str(tmp_path / "p.html"), "--wandb", "--no-data"])
    assert not started
