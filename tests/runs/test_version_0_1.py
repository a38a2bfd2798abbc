"""Checkpoints, configs and caches of version 0.1 still work.

tests/fixtures/version_0_1 was made by that version: a teacher and a student of one epoch on the
digits, the student's config.yaml, and a cache of the teacher's outputs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kd_lightning.runs.launch import launch

FIXTURES = Path(__file__).parents[1] / "fixtures" / "version_0_1"

TEST_ERRORS = 572
TEACHER_AGREEMENT = 0.17940199375152588
TRAIN_LOSS = 0.3127385675907135


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(FIXTURES, folder)
    return folder


def test_a_student_is_tested_with_its_own_config(old: Path, tmp_path: Path) -> None:
    result = launch(
        [
            "test",
            *("-c", str(old / "student.yaml")),
            f"--ckpt_path={old / 'student.ckpt'}",
            f"--model.teacher.checkpoint={old / 'teacher.ckpt'}",
            f"--run.dir={tmp_path / 'test'}",
        ]
    )
    assert result.metrics["test_errors"] == TEST_ERRORS
    assert result.metrics["test_teacher_agreement"] == pytest.approx(
        TEACHER_AGREEMENT, rel=1e-6
    )


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_and_its_cache_teach_as_before(
    cached: bool, old: Path, tmp_path: Path
) -> None:
    teacher = [f"--model.teacher.checkpoint={old / 'teacher.ckpt'}"]
    if cached:
        teacher = [
            "--model.teacher=kd_lightning.teachers.CachedTeacher",
            f"--model.teacher.path={old / 'cache'}",
        ]
    result = launch(
        [
            "fit",
            "-c",
            str(old / "student.yaml"),
            *teacher,
            f"--run.dir={tmp_path / 'run'}",
        ]
    )
    assert result.metrics["train_loss"] == pytest.approx(TRAIN_LOSS, rel=1e-6)
