"""The CIFAR-100 benchmark's spec: each pair with its own teacher, and what the benchmark sets for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.cli import main
from kd_lightning.experiments import keys

FOUR = [
    "--set",
    "stages=[stage1, stage2, stage3, stage4]",
    "--set",
    "last=stage4",
    "--set",
    "dkd_beta=6",
]


@pytest.mark.parametrize(
    ("teacher", "student", "more", "expected"),
    [
        ("resnet56", "resnet20", [], {"DKD": "beta=2.0", "SP": "layer=stage3"}),
        (
            "vgg13",
            "vgg8",
            FOUR,
            {"DKD": "beta=6", "SP": "layer=stage4", "AT": "stage4", "VID": "stage4"},
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
