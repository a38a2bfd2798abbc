"""What every test needs: a clean environment, and the folder with the real data where there is one."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported, and for the processes that tests start: the networks here are so small that a second thread only
# waits for the first, sixty times as long where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds the real data sets: `KD_DATA_ROOT`, else `../shared/data` beside the repository."""
    named = os.environ.get("KD_DATA_ROOT")
    root = (
        Path(named).expanduser()
        if named
        else Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    if not root.is_dir():
        pytest.skip(
            f"no real data: {root} does not exist; point KD_DATA_ROOT to the folder that holds MNIST/"
        )
    return root


@pytest.fixture(autouse=True, scope="module")
def unseeded() -> None:
    """No run seed that another module's fixtures left."""
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run seed and no matmul precision from outside or from another test, and no run on W&B."""
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setenv(
        "PL_GLOBAL_SEED", "0"
    )  # set first: only then is a seed that the test itself leaves undone too
    monkeypatch.delenv("PL_GLOBAL_SEED")
    monkeypatch.setenv("WANDB_MODE", "disabled")
