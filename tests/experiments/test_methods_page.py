"""The reference of all methods, `experiments/methods.md`: current, complete, and made without results too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments import methods as page_maker
from kd_lightning import catalog, losses
from kd_lightning.losses import CTKD, DKD, KD, RKD, CrossEntropy, DistillLoss, SimKD

ROOT = Path(__file__).parents[2]

ROW = {"run": "KD", "metric": "test_errors", "mean": 90.0, "std": 4.0, "n": 5}
RESULTS = {
    "rows": [
        ROW,
        {"run": "DKD", "metric": "test_accuracy", "mean": 0.9, "std": None, "n": 1},
        {
            "run": "DKD",
            "metric": "step_time_relative_to_kd_live",
            "mean": 0.97,
            "std": 0.01,
            "n": 3,
        },
    ],
    "comparisons": [
        {
            "a": "KD",
            "b": "DKD",
            "metric": "test_errors",
            "mean": -3.5,
            "p": 0.01,
            "p_holm": 0.02,
        },
        {
            "a": "DKD",
            "b": "KD",
            "metric": "test_errors",
            "mean": 1.0,
            "margin": 3.0,
            "p": 0.4,
        },
    ],
}

SPEC = """\
title: Two methods
claim: They differ.
time: a minute
seeds: 5
runs:
  KD: {configs: [configs/methods/kd.yaml]}
  DKD: {configs: [configs/methods/dkd.yaml]}
  cache: {configs: [configs/methods/kd.yaml], cache: {dtype: fp32}}
"""


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """A folder with one experiment and its results."""
    folder = tmp_path / "paper2020" / "results" / "two"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "paper2020" / "two.yaml").write_text(SPEC)
    return tmp_path


def section(text: str, name: str) -> str:
    """The part of the page about one method."""
    return text.split(f"### {name}\n")[1].split("\n##")[0]


def test_the_committed_page_is_current() -> None:
    expected = page_maker.page(page_maker.PAGE.parent)
    assert page_maker.PAGE.read_text(encoding="utf-8") == expected, (
        "run python -m experiments.methods"
    )


def test_every_method_and_config_has_its_place(tmp_path: Path) -> None:
    text = page_maker.page(tmp_path)
    for row in catalog.methods():
        name = row["class_path"].rpartition(".")[2]
        about = section(text, name)
        assert row["paper"] in about
        assert f"(../{row['config']})" in about
        assert (ROOT / row["config"]).is_file()


def test_without_results_the_page_has_no_numbers(tmp_path: Path) -> None:
    text = page_maker.page(tmp_path)
    assert "seeds)" not in text
    assert "Cost of a step" not in text
    assert section(text, "KD").count("T^2") > 0


def test_results_come_from_the_files(experiments: Path) -> None:
    text = page_maker.page(experiments)
    assert (
        "| paper2020/two | KD | test errors | 90.0 ± 4.0 (5 seeds) | DKD: -3.5, p = 0.02 |"
        in section(text, "KD")
    )
    about = section(text, "DKD")
    # A test of equality is no difference, and one seed has no deviation.
    assert "| paper2020/two | DKD | test accuracy | 90.00% (1 seed) |  |" in about
    assert "time 0.97 of kd live" in about
    assert "Cost of a step" not in section(text, "KD")


def test_results_of_a_deleted_experiment_are_left_out(experiments: Path) -> None:
    (experiments / "paper2020" / "two.yaml").unlink()
    assert page_maker.committed_results(experiments) == []


def test_many_runs_of_a_method_become_a_link(experiments: Path) -> None:
    rows = []
    runs = "title: t\nclaim: c\ntime: t\nruns:\n"
    for number in range(page_maker.MOST_RUNS + 1):
        rows.append({**ROW, "run": f"KD {number}"})
        runs += f"  KD {number}: {{configs: [configs/methods/kd.yaml]}}\n"
    folder = experiments / "paper2020"
    (folder / "two.yaml").write_text(runs)
    content = {"rows": rows, "comparisons": []}
    (folder / "results" / "two" / "results.json").write_text(json.dumps(content))
    about = section(page_maker.page(experiments), "KD")
    assert "| paper2020/two | 9 runs | test errors | see its table |  |" in about
    assert "KD 3" not in about


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (KD, "full or top-k"),
        (DKD, "full"),
        (CTKD, "full"),
        (RKD, "full, with features"),
        (SimKD, "none"),
        (CrossEntropy, "no teacher"),
    ],
)
def test_cache(loss: type[DistillLoss], expected: str) -> None:
    (method,) = [each for each in page_maker.methods() if each.cls is loss]
    assert page_maker.cache_of(method) == expected


def test_formulas_come_from_class_and_functions() -> None:
    found = list(page_maker.formulas(KD))
    assert any(line.startswith("`soft_target_kl`: $T^2") for line in found)
    assert any(line.startswith("Soft targets: $T^2") for line in found)
    # What the arguments mean is no formula.
    assert not any("Args" in line for line in found)


def test_a_new_family_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.KD, "family", "new")
    assert page_maker.methods()[-1].name == "KD"


def test_the_generator_runs_where_no_results_are_shipped(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "experiments" / "caches", tmp_path / "caches")
    shutil.rmtree(tmp_path / "caches" / "results")
    assert page_maker.committed_results(tmp_path) == []
