"""With --run.keep_memory, freed memory stays in the process, and no page is requested twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import TEACHER, Kd

PAGES = 2 * 40 * 2**20 // 4096
COUNT = """
import resource, sys, torch
from kd_lightning.runs.memory import keep_memory
kept = len(sys.argv) > 1 and keep_memory()
def step():
    blocks = [torch.ones(40 * 2**20, dtype=torch.uint8) for _ in range(2)]
for _ in range(20):  # until the heap has found its size
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(int(kept), (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


def counted(*arguments: str) -> tuple[bool, int]:
    """Whether memory was kept, and page faults a step."""
    run = subprocess.run(
        [sys.executable, "-c", COUNT, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = run.stdout.split()
    return kept == "1", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's allocator")
def test_no_page_is_asked_for_twice() -> None:
    kept, faults = counted("keep")
    if not kept:
        pytest.skip("this system's allocator is not glibc's")
    assert faults < PAGES / 100
    assert counted()[1] > PAGES / 2  # what there is to be saved


@pytest.mark.parametrize("option", [[], ["--run.keep_memory=true"]])
def test_only_the_option_changes_the_allocator(
    option: list[str], kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(
        "kd_lightning.runs.launch.keep_memory", lambda: calls.append(None)
    )
    assert kd(*TEACHER, *option).code == 0
    assert len(calls) == len(option)
