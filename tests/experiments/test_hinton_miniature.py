"""Every experiment on MNIST in miniature: the same YAML on 8x8 digits, one epoch, one seed, through the real runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.cli import main
from kd_lightning.paths import shipped_root
from kd_lightning.training import TrainingModule
from tests.experiments import resolve_analyses

NAMES = sorted(
    path.stem
    for path in (shipped_root() / "experiments" / "hinton2015").glob("mnist*.yaml")
)


def miniature(name: str) -> dict[str, Any]:
    """The experiment's YAML on digits; of each grid the first two values, and those that an analysis names."""
    text = (shipped_root() / "experiments" / "hinton2015" / f"{name}.yaml").read_text()
    content: dict[str, Any] = yaml.safe_load(
        text.replace("configs/data/mnist.yaml", "configs/data/digits.yaml")
    )
    resolve_analyses(content, shipped_root() / "experiments" / "hinton2015")
    content["seeds"] = 1
    content["quick"] = {"seeds": 1, "overrides": {"trainer.max_epochs": 1}}
    named = str(content.get("analyses", {}))
    for run in content["runs"].values():
        run["grid"] = {
            key: [
                v
                for at, v in enumerate(values)
                if at < 2 or f"{key.rpartition('.')[2]}={v}" in named
            ]
            for key, values in run.get("grid", {}).items()
        }
    grids = tuple(f"{name} " for name, run in content["runs"].items() if run["grid"])
    for key in ("compare", "alike"):  # which may name what was cut
        pairs = content.get(key, [])
        sides = [
            [pair["a"], pair["b"]] if isinstance(pair, dict) else pair for pair in pairs
        ]
        content[key] = [
            p
            for p, names in zip(pairs, sides, strict=True)
            if not grids or not any(n.startswith(grids) for n in names)
        ]
    for analysis in content.get("analyses", {}).values():
        if "cases" in analysis or analysis["function"].endswith("variance"):
            analysis["cases"] = 20
    return content


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Shared by all, as the experiments share their teachers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        yield tmp_path_factory.mktemp("store")


def reproduce(content: dict[str, Any], folder: Path, store: Path) -> int:
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return main(
        [
            "reproduce",
            str(path),
            f"--output={folder}/out",
            f"--store={store}",
            "--quick",
        ]
    )


QUICKEST = ("mnist", "mnist-unseen-digit")
"""The experiments that every run of the tests reproduces."""


@pytest.mark.parametrize(
    "name",
    # The other experiments are built from the same parts; each takes many seconds.
    [
        name if name in QUICKEST else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_in_miniature(
    name: str, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(miniature(name), tmp_path, store) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["run"] for row in content["rows"]} >= set(content_runs(name))
    assert all(row["values"] for row in content["rows"])
    assert (tmp_path / "out" / "summary.png").stat().st_size > 1000


def content_runs(name: str) -> list[str]:
    """Runs that must have a row: all that are no cache, no grid and may not fail."""
    runs = miniature(name)["runs"]
    return [
        run
        for run, spec in runs.items()
        if not spec["grid"] and "cache" not in spec and not spec.get("may_fail")
    ]


# Tests of the runner interrupt and change smaller experiments each time.
@pytest.mark.slow
def test_interrupted_and_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    content = miniature("mnist")
    begin, begun = TrainingModule.on_train_epoch_start, []

    def stop_at_third(module: TrainingModule) -> None:
        begun.append(module)
        if len(begun) == 3:
            raise KeyboardInterrupt
        begin(module)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_epoch_start", stop_at_third)
        assert reproduce(content, tmp_path, tmp_path / "store") == 130
    assert "interrupted" in capsys.readouterr().err
    assert reproduce(content, tmp_path, tmp_path / "store") == 0
    assert "runs are finished already" in capsys.readouterr().out
    content["runs"]["distilled"]["overrides"]["model.losses.kd.temperature"] = 5.0
    assert reproduce(content, tmp_path, tmp_path / "store") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "distilled is run again:" in said
    assert "temperature (20.0 -> 5.0)" in said
    assert "teacher is run again" not in said
