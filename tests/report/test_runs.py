"""`kd report` of runs: what it shows, what it lacks and why, and hostile names."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kd_lightning.cli import main
from tests.report.reading_pages import PageReader, read
from tests.runs import Kd

SECTIONS = [
    "Overview",
    "Metrics",
    "Size and speed",
    "Learning curves",
    "Confusion matrix",
    "Calibration",
    "Agreement with the teacher",
    "What the soft targets say",
    "Worst mistakes",
    "Config and environment",
]


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


@pytest.fixture(scope="module")
def page(distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> PageReader:
    """The page of the distilled run, made once."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(distilled), "--output", str(path)]) == 0
    return read(path)


def test_a_student_and_its_teacher(distilled: Path, page: PageReader) -> None:
    assert page.headings() == SECTIONS
    # Curves, confusions, calibration, agreement.
    assert len(page.of_tag("svg")) == 4
    assert page.of_tag("h1")[0].text == "Report: distilled"
    metrics = record(distilled)["metrics"]
    assert f"{metrics['test_accuracy']:.2%}" in page.section("Metrics")
    # 64 inputs, 16 hidden units, 10 classes, with biases.
    assert "1,210" in page.section("Size and speed")
    assert f"ECE {metrics['test_calibration_error']:.2%}" in page.section("Calibration")
    agreement = page.section("Agreement")
    assert f"{metrics['test_teacher_agreement']:.2%}" in agreement
    assert "At T = 4 the teacher's distributions" in page.section("What the soft")
    stored = load_file(distilled / "predictions-test.safetensors")
    wrong = int((stored["logits"].argmax(1) != stored["target"]).sum())
    assert f"{wrong:,} in all" in page.section("Confusion matrix")
    # Eight samples of soft targets and twelve mistakes.
    assert len(page.of_tag("img")) == 8 + 12
    assert "max_epochs: 2" in page.section("Config")


def test_the_agreement_is_that_of_the_run(distilled: Path, page: PageReader) -> None:
    """The teacher of the report is the one that the run was tested with."""
    table = page.section("Agreement with the teacher")
    stored = load_file(distilled / "predictions-test.safetensors")
    metrics = record(distilled)["metrics"]
    right = int((stored["logits"].argmax(1) == stored["target"]).sum())
    samples = len(stored["index"])
    teacher_right = round(metrics["test_teacher_accuracy"] * samples)
    found = re.search(r"share both (\d+) ", table)
    assert found is not None
    both = int(found[1])
    assert f"the student alone {right - both} " in table
    assert f"the teacher alone {teacher_right - both} " in table
    assert f"neither {samples - right - teacher_right + both} " in table


def test_several_runs_are_side_by_side(
    distilled: Path, teacher: Path, kd: Kd, place: Path
) -> None:
    other = teacher.parent.parent
    outcome = kd(
        "report", str(distilled), str(other), "--output", "two.html", "--no-data"
    )

    assert (outcome.code, outcome.err) == (0, "")
    page = read(place / "two.html")
    assert page.headings() == [*SECTIONS[:-1], "What differs", SECTIONS[-1]]
    titles = [element.text for element in page.of_tag("h3")]
    assert titles.count("distilled") == len(SECTIONS) - 3
    assert titles.count(other.name) == len(SECTIONS) - 3
    assert "max_epochs 2 1" in page.section("What differs")


@pytest.fixture
def copied(distilled: Path, place: Path) -> Path:
    """A copy of the distilled run that a test may change."""
    folder = place / "copied"
    shutil.copytree(distilled, folder)
    return folder


def test_without_data_the_page_says_what_is_missing(
    copied: Path, kd: Kd, place: Path
) -> None:
    shutil.rmtree(copied / "checkpoints")
    outcome = kd("report", "copied", "--no-data")

    assert (outcome.code, outcome.err) == (0, "")
    page = read(place / "report.html")
    assert page.headings() == SECTIONS
    assert page.of_tag("img") == []
    assert "--no-data leaves out the samples" in page.section("Worst mistakes")
    assert "--no-data leaves out the teacher" in page.section("Agreement")
    assert "size and FLOPs are unknown" in page.section("Size and speed")
    # What the folder holds is there all the same.
    assert len(page.of_tag("svg")) == 3


def test_a_teacher_that_is_gone_is_named(copied: Path, kd: Kd, place: Path) -> None:
    path = copied / "config.yaml"
    config = yaml.safe_load(path.read_text())
    teacher = config["model"]["init_args"]["teacher"]["init_args"]
    teacher["checkpoint"] = "gone/checkpoints/last.ckpt"
    path.write_text(yaml.safe_dump(config))

    assert kd("report", "copied").code == 0
    page = read(place / "report.html")
    for title in ("Agreement with the teacher", "What the soft targets say"):
        assert "There are no outputs of a teacher: " in page.section(title)
        assert "gone/checkpoints/last.ckpt" in page.section(title)
    # The run itself measured the agreement, and the mistakes need no teacher.
    assert "predict the same class in" in page.section("Agreement")
    assert len(page.of_tag("img")) == 12


def test_an_untested_run_has_a_page(copied: Path, kd: Kd, place: Path) -> None:
    (copied / "predictions-test.safetensors").unlink()
    (copied / "metrics.csv").unlink()

    assert kd("report", "copied", "--no-data").code == 0
    page = read(place / "report.html")
    assert "no metrics.csv" in page.section("Learning curves")
    for title in ("Confusion matrix", "Calibration", "Worst mistakes"):
        assert "train with --run.test=last" in page.section(title)


def test_names_of_classes_cannot_act(copied: Path, kd: Kd, place: Path) -> None:
    """Classes and labels come from files of strangers."""
    hostile = "<script>alert(1)</script>"
    path = copied / "run.json"
    content = record(copied)
    content["data"]["classes"][0] = hostile
    content["data"]["classes"][1] = "$\\frac{a}{b}$ \x1b[31m"
    content["data"]["data"] = '"><img src=x onerror=alert(1)>'
    path.write_text(json.dumps(content))

    assert kd("report", "copied", "--no-data").code == 0
    text = (place / "report.html").read_text(encoding="utf-8")
    # Reading finds no script, no handler and no request.
    page = read(place / "report.html")
    assert hostile not in text
    assert "&lt;script&gt;" in text
    assert hostile in page.section("Confusion matrix")
    assert "\x1b" not in text
    assert "$\\frac{a}{b}$ \\x1b[31m" in page.section("Confusion matrix")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"logits": torch.zeros(3, 10)}, "it names no samples"),
        (
            {"index": torch.arange(3), "logits": torch.zeros(2, 10)},
            "logits does not have 3 samples",
        ),
        (
            {"index": torch.arange(3), "logits": torch.zeros(3, 7)},
            "it has 7 classes, but the data has 10",
        ),
        (
            {"index": torch.arange(2), "target": torch.tensor([0, 12])},
            "it has a label 12",
        ),
        ({"index": torch.arange(2)}, "it does not come from a test of classification"),
    ],
)
def test_damaged_predictions_are_named(
    tensors: dict[str, torch.Tensor], problem: str, copied: Path, kd: Kd, place: Path
) -> None:
    # Figures are not what this test is about.
    (copied / "metrics.csv").unlink()
    save_file(tensors, copied / "predictions-test.safetensors")

    assert kd("report", "copied", "--no-data").code == 0
    assert problem in read(place / "report.html").section("Confusion matrix")


def test_the_file_of_kd_benchmark(copied: Path, kd: Kd, place: Path) -> None:
    rows = [{"network": "copied", "parameters": 1210, "p50_ms_batch_1": 0.0123}]
    Path("table.json").write_text(json.dumps(rows))

    arguments = ["report", "copied", "--no-data"]
    assert kd(*arguments, "--benchmark", "table.json").code == 0
    section = read(place / "report.html").section("Size and speed")
    assert "p50 ms, batch 1 0.0123" in section
    assert "No latency" not in section


def test_the_help_needs_nothing_slow(kd: Kd, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        kd("report", "--help")
    assert stop.value.code == 0
    assert "--benchmark FILE.json" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run or experiment is called 'nowhere'"),
        (["empty"], "empty is not a run: it has no run.json"),
        (["damaged"], "damaged: run.json is damaged"),
        (["damaged", "--output", "no/such.html"], "the folder no does not exist"),
        (["damaged", "--output", "empty"], "--output empty is a folder"),
        (["damaged", "--benchmark", "damaged/run.json"], "is not a file that kd bench"),
        ([], "the following arguments are required"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, kd: Kd, place: Path
) -> None:
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/run.json").write_text("{")

    outcome = kd("report", *arguments)

    assert outcome.code == 2
    assert outcome.out == ""
    [line] = outcome.err.splitlines()
    assert message in line
    assert not (place / "report.html").exists()
