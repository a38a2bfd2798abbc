"""Workloads timed in turn in one process, so that what slows the machine slows all of them alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DISTURBED = 0.10
"""A round is dropped where other processes used more than this share of the machine while it ran."""


def _busy() -> float:
    """CPU seconds that the whole machine has spent working; 0 where the system does not tell."""
    try:
        user, nice, system, _, _, irq, soft, steal = map(
            int, Path("/proc/stat").read_text().split()[1:9]
        )
    except (OSError, ValueError):
        return 0.0
    return float(user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """CPU seconds of this process and of the commands that it ran."""
    return sum(os.times()[:4])


@dataclass
class Timings:
    """Seconds of each workload in each round that counts, and how many rounds were dropped."""

    seconds: dict[str, list[float]]
    dropped: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, a: str, b: str) -> tuple[float, float, float]:
        """Median of the paired ratios a / b, and its 95% bootstrap interval."""
        ratios = np.array(self.seconds[a]) / np.array(self.seconds[b])
        drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
        low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
        return float(np.median(ratios)), float(low), float(high)


def interleave(
    workloads: dict[str, Callable[[], float]], rounds: int, most: int | None = None
) -> Timings:
    """Run all workloads once a round until `rounds` undisturbed rounds are there.

    Args:
        workloads: each returns its seconds a step.
        rounds: how many rounds count; one more, not counted, comes first.
        most: how many rounds are tried at the most; three times `rounds` where left out.

    Raises:
        SystemExit: where the machine was too busy.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    dropped = 0
    for work in workloads.values():
        work()
    names = list(workloads)
    for _ in range(most or 3 * rounds):
        if len(next(iter(seconds.values()))) == rounds:
            break
        names = [
            *names[1:],
            names[0],
        ]  # each in turn comes first, so that none always follows the same one
        busy, own, wall = _busy(), _own(), time.perf_counter()
        found = {name: workloads[name]() for name in names}
        wall = time.perf_counter() - wall
        others = max(0.0, (_busy() - busy) - (_own() - own)) / (wall * (os.cpu_count() or 1))
        if others > DISTURBED:
            dropped += 1
            print(f"round dropped: other processes used {others:.0%} of the machine", flush=True)
            continue
        for name in names:
            seconds[name].append(found[name])
        print("  ".join(f"{name} {1000 * found[name]:.4g} ms" for name in workloads), flush=True)
    if len(next(iter(seconds.values()))) < rounds:
        raise SystemExit(
            f"only {len(next(iter(seconds.values())))} of {rounds} rounds were undisturbed; try again on a quiet machine"
        )
    return Timings(seconds, dropped)
