"""The CIFAR-100 benchmark's spec: each pair with its own teacher, and what the benchmark sets for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning import catalog
from kd_lightning.cli import main
from kd_lightning.experiments import keys
from kd_lightning.experiments.spec import load

FOUR = [
    "--set",
    "stages=[stage1, stage2, stage3, stage4]",
    "--set",
    "last=stage4",
    "--set",
    "preacts=[preact1, preact2, preact3, preact4]",
    "--set",
    "exits=[stage1, stage2, stage3]",
    "--set",
    "dkd_beta=6",
]
TEXT_METHODS = {"distilbert", "pkd", "tinybert"}
NOT_LISTED = {
    "harddistillation_token": "the students of all pairs are convolutional and have no token",
    "targetmse": "it is for real-valued targets",
}
"""Methods for images that the benchmark's pairs cannot run, and why."""
FIRST_STAGES = {"fitnets_hint", "fsp", "ab"}
"""Configs that the benchmark replaces: FSP and AB train in two runs, FitNets in one."""


@pytest.mark.parametrize(
    ("teacher", "student", "more", "expected"),
    [
        ("resnet56", "resnet20", [], {"DKD": "beta=2.0", "SP": "layer=stage3"}),
        pytest.param(
            "vgg13",
            "vgg8",
            FOUR,
            {
                "DKD": "beta=6",
                "SP": "layer=stage4",
                "AT": "stage4",
                "VID": "stage4",
                "NST": "stage4",
                "OFD": "preact4",
                "OFA-KD": "stage4",
                "BYOT": "stage1, stage2, stage3",
                "AB stage one": "preact4",
            },
            # With four stages in place of three, and otherwise as the other pair.
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_pair(
    teacher: str,
    student: str,
    more: list[str],
    expected: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        keys, "data_checksum", lambda config: "no data is needed to plan"
    )
    names = ["--set", f"teacher={teacher}", "--set", f"student={student}"]
    where = [f"--store={tmp_path}/store", f"--output={tmp_path}/out"]
    assert (
        main(
            [
                "reproduce",
                "crd2020/cifar100",
                "--dry-run",
                "--seeds=1",
                *names,
                *more,
                *where,
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    commands = {
        line.split(",")[0]: command
        for line, command in zip(lines[::2], lines[1::2], strict=True)
    }
    assert f"configs/teachers/cifar_{teacher}.yaml" in commands["teacher"]
    for run, command in commands.items():
        assert run == "teacher" or f"configs/pairs/{teacher}_{student}.yaml" in command
    for run, words in expected.items():
        assert words in commands[run]


def test_every_method_for_images_is_listed() -> None:
    spec = load("crd2020/cifar100")
    listed = set()
    for run in spec.runs:
        for config in run.configs:
            if config.startswith("configs/methods/"):
                listed.add(Path(config).stem)
    expected = set()
    for row in catalog.methods():
        expected.add(Path(row["config"]).stem)
    left_out = TEXT_METHODS | FIRST_STAGES | set(NOT_LISTED)
    assert listed == expected - left_out
