"""What does not fit is refused before it is computed: too many views, a full disk, half precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.limits import MAX_VIEWS
from kd_lightning.models import MLP
from kd_lightning.teachers import ModelTeacher, cache_teacher


def teacher() -> ModelTeacher:
    torch.manual_seed(0)
    return ModelTeacher(network=MLP([8], input_shape=[1, 8, 8], num_classes=10))


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    return DigitsDataModule(batch_size=64)


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("views", [0, -1, MAX_VIEWS + 1, 10**9])
def test_views_are_checked_before_anything_is_planned(
    data: DigitsDataModule, tmp_path: Path, views: int
) -> None:
    assert "--views must be from 1 to" in complaint(
        lambda: cache_teacher(teacher(), data, tmp_path / "c", views=views)
    )
    assert not (tmp_path / "c").exists()


def test_the_size_is_compared_with_the_disk(
    data: DigitsDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40 * 1797
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=size - 1)
    )
    message = complaint(lambda: cache_teacher(teacher(), data, tmp_path / "c"))
    assert "1,797 outputs in 2 tables of 40 bytes each" in message
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    cache_teacher(teacher(), data, tmp_path / "c")
    # What is there already needs no room.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    cache_teacher(teacher(), data, tmp_path / "c")


def test_logits_beyond_half_precision_are_refused(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    loud = teacher()
    with torch.no_grad():
        next(iter(loud.parameters())).mul_(1e6)
    assert "use --dtype fp32" in complaint(
        lambda: cache_teacher(loud, data, tmp_path / "c", dtype="fp16")
    )
