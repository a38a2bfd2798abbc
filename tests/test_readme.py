"""The README's Python examples run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.data import DigitsDataModule
from kd_lightning.training import Learner
from kd_lightning.types import CLEAN
from tests.training.small import last, teacher_run

README = Path(__file__).parent.parent / "README.md"
PYTHON_BLOCKS = re.findall(
    r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
)


def accuracy(learner: Learner) -> float:
    source = DigitsDataModule().source("test")
    batch = source.batch(torch.arange(len(source)), CLEAN)
    with torch.no_grad():
        return float((learner(batch).logits.argmax(-1) == batch.target).double().mean())


def test_a_loop_of_your_own_trains_a_student(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The example reads the teacher that the README's first command trains.
    checkpoint = tmp_path / "runs" / "digits-mlp" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(last(teacher_run(tmp_path_factory)), checkpoint)
    monkeypatch.chdir(tmp_path)
    (loop,) = [block for block in PYTHON_BLOCKS if "objective(" in block]
    lines = [line for line in loop.splitlines() if line]
    statements = [line for line in lines if not line.startswith(("import", "from"))]
    assert len(statements) <= 20
    torch.manual_seed(0)
    variables: dict[str, Any] = {}
    exec(compile(loop, str(README), "exec"), variables)
    assert accuracy(variables["student"]) > 0.5


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_every_example_compiles(block: str) -> None:
    compile(block, str(README), "exec")
