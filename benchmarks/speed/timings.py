"""Times workloads in turn in one process, so that disturbances slow all of them equally."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_DISTURBANCE = 0.10
"""A round is dropped if other processes used more than this share of the machine during it."""


def _machine_cpu_seconds() -> float:
    """CPU seconds that the whole machine has spent working; 0 if the system does not report it."""
    try:
        # The first line is `cpu user nice system idle iowait irq softirq steal ...`, in ticks.
        fields = Path("/proc/stat").read_text().split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    except (OSError, ValueError):
        return 0.0
    ticks = user + nice + system + irq + softirq + steal
    return float(ticks) / os.sysconf("SC_CLK_TCK")


def _own_cpu_seconds() -> float:
    """CPU seconds of this process and of the commands that it ran."""
    return sum(os.times()[:4])


@dataclass
class Timings:
    """The timings of several workloads over the same rounds.

    Attributes:
        seconds: seconds of each workload in each round that counts.
        dropped: number of dropped rounds.
    """

    seconds: dict[str, list[float]]
    dropped: int

    def median(self, name: str) -> float:
        """Median seconds of a workload."""
        return statistics.median(self.seconds[name])

    def ratio(self, a: str, b: str) -> tuple[float, float, float]:
        """Median of the paired ratios a / b, and the bounds of its 95% bootstrap interval."""
        seconds_a = np.array(self.seconds[a])
        seconds_b = np.array(self.seconds[b])
        ratios = seconds_a / seconds_b
        # Resample rounds with replacement, and take the median of each resample.
        generator = np.random.default_rng(0)
        resampled = generator.choice(ratios, (10_000, len(ratios)))
        medians = np.median(resampled, axis=1)
        low, high = np.percentile(medians, [2.5, 97.5])
        return float(np.median(ratios)), float(low), float(high)


def interleave(
    workloads: Mapping[str, Callable[[], float]],
    rounds: int,
    max_rounds: int | None = None,
) -> Timings:
    """Run all workloads once per round until enough rounds were undisturbed.

    Args:
        workloads: each returns its seconds per step.
        rounds: number of rounds that count. One more round comes first and is not counted.
        max_rounds: number of rounds to try at most; by default three times `rounds`.

    Raises:
        SystemExit: if the machine was too busy.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    counted = 0
    dropped = 0
    # The first run of a workload chooses kernels and fills caches, and is not counted.
    for workload in workloads.values():
        workload()
    order = list(workloads)
    for _ in range(max_rounds or 3 * rounds):
        if counted == rounds:
            break
        # Rotated, so that each workload comes first in turn.
        order = [*order[1:], order[0]]
        results, disturbance = _run_round(workloads, order)
        if disturbance > MAX_DISTURBANCE:
            dropped += 1
            print(
                f"round dropped: other processes used {disturbance:.0%} of the machine",
                flush=True,
            )
            continue
        counted += 1
        for name, result in results.items():
            seconds[name].append(result)
        shown = [f"{name} {1000 * results[name]:.4g} ms" for name in workloads]
        print("  ".join(shown), flush=True)
    if counted < rounds:
        raise SystemExit(
            f"only {counted} of {rounds} rounds were undisturbed; try again on a quiet machine"
        )
    return Timings(seconds, dropped)


def _run_round(
    workloads: Mapping[str, Callable[[], float]], order: list[str]
) -> tuple[dict[str, float], float]:
    """Run each workload once.

    Returns:
        The seconds of each workload, and the share of the machine that other processes used.
    """
    machine_before = _machine_cpu_seconds()
    own_before = _own_cpu_seconds()
    started = time.perf_counter()
    results = {name: workloads[name]() for name in order}
    elapsed = time.perf_counter() - started
    machine = _machine_cpu_seconds() - machine_before
    own = _own_cpu_seconds() - own_before
    available = elapsed * (os.cpu_count() or 1)
    return results, max(0.0, machine - own) / available
