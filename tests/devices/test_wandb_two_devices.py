"""Two processes that train together are one run on W&B, and one folder."""

from __future__ import annotations

from pathlib import Path

from tests.devices.test_two import PLAIN, kd


def test_two_processes_are_one_wandb_run(tmp_path: Path) -> None:
    devices = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.accelerator=cpu",
    ]
    own = {
        f"WANDB_{name}_DIR": str(tmp_path / "own")
        for name in ("CACHE", "CONFIG", "DATA")
    }
    folder = tmp_path / "runs" / "two"
    record = kd(
        [*PLAIN, *devices, "--trainer.max_epochs=1", "--run.wandb=offline"],
        folder,
        **own,
    )
    assert record["status"] == "finished"
    assert [path.name for path in folder.parent.iterdir()] == ["two"]
    assert [path.parent for path in tmp_path.rglob("run.json")] == [folder]
    [written] = folder.glob("wandb/offline-run-*")
    assert [path.parent for path in tmp_path.rglob("*.wandb")] == [written]
    [log] = written.glob("*.wandb")
    assert (
        b"test_errors" in log.read_bytes()
    )  # logged to the end, by the process that writes
    assert record["metrics"]["test_errors"] > 0
