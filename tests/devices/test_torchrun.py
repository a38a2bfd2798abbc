"""Processes that another program starts, as torchrun and SLURM do, make one run together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.devices.test_two import CONFIGS, ROOT


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(rank: int, port: int, root: Path) -> subprocess.Popen[str]:
    """Start one of two processes with the environment that torchrun gives it."""
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "ROLE_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "kd_lightning", "fit"]
    for config in CONFIGS:
        command += ["-c", config.removeprefix("-c")]
    devices = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.accelerator=cpu",
    ]
    options = ["--trainer.max_epochs=1", "--run.test=best", f"--run.root={root}"]
    return subprocess.Popen(
        [*command, *devices, *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_the_processes_share_the_folder_of_the_first(tmp_path: Path) -> None:
    port = free_port()
    processes = [start(rank, port, tmp_path / "runs") for rank in (0, 1)]
    outcomes = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    # The second process found best.ckpt in the folder that only the first one had named.
    [folder] = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert "test_accuracy" in record["metrics"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "predictions-test.safetensors",
        "run.json",
    ]
