"""A small part of benchmarks/reliability, with the same code: damaged and hostile input, and kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "reliability"

COMMANDS = {
    "malformed input": ["malformed.py", "--sample=24"],
    "hostile input": ["hostile.py", "--sample=24"],
    "kills": ["kills.py", "--trials=2", "--only=distill with KD"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_finds_no_fault(name: str) -> None:
    script, *options = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *options],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
