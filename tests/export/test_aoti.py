"""`kd export --format aoti`: compiled code, and who may run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kd_lightning import trust
from kd_lightning.errors import UserError
from kd_lightning.export.aoti import Aoti
from tests.runs import Kd


def test_without_a_compiler_it_is_one_line(
    run: Path, kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    outcome = kd("export", str(run), "--format", "aoti", "--output", "compiled")

    assert outcome.code == 2
    assert "needs a C++ compiler, and there is no no-such-compiler" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not Path("compiled").exists()


def test_machine_code_of_others_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "student.aoti.pt2").write_bytes(b"machine code")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", loaded.append)
    monkeypatch.setattr(trust, "_allowed", set())

    with pytest.raises(UserError, match="holds machine code"):
        Aoti().read(tmp_path)
    assert loaded == []
    trust.allow("aoti")
    Aoti().read(tmp_path)

    assert loaded == [str(tmp_path / "student.aoti.pt2")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_code_predicts_what_the_run_predicts(
    run: Path, kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_allowed", set())

    outcome = kd("export", str(run), "--format", "aoti", "--output", "compiled")

    assert outcome.code == 0, outcome.err
    content = json.loads((Path("compiled") / "student.json").read_text())
    assert content["check"]["batch_sizes"] == [1, 2, 7, 64]
    assert content["check"]["largest_difference"] <= 1e-5
