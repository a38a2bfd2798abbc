"""Measures one network in a process of its own: `python -m kd_lightning.export.latency TARGET`.

The process loads the network and prints a line of JSON about it. Then it measures whenever it reads
a batch size on standard input, and prints a line of JSON with the result.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.export.formats import Predictor, find_format
from kd_lightning.export.student import load_student

WARM_UP_PASSES = 5
SECONDS = 1.0
"""How long one measurement lasts."""

ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
"""A counter of the processor's energy in microjoules, on machines that have one."""


@dataclass(frozen=True)
class Loaded:
    """A network that is ready to be measured.

    Attributes:
        kind: "checkpoint" or the format of an export.
        file_bytes: size of the file.
        parameters: number of parameters; `None` if the file does not say.
        flops: per sample; `None` if the file does not say.
        metrics: test metrics, as far as they are known.
    """

    kind: str
    file_bytes: int
    parameters: float | None
    flops: float | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class Timing:
    """Durations of the forward passes with one batch size.

    Attributes:
        batch: samples per pass.
        p50_ms, p95_ms: median and 95th percentile of a pass, in milliseconds.
        per_second: samples per second.
        peak_bytes: memory above that of the loaded network; 0 if the system does not tell.
        millijoules: energy per sample; `None` if the machine has no counter.
    """

    batch: int
    p50_ms: float
    p95_ms: float
    per_second: float
    peak_bytes: int
    millijoules: float | None


def load(target: Path) -> tuple[Loaded, Predictor, tuple[Tensor, ...]]:
    """Load a run's checkpoint or an export.

    Returns:
        What is known of it, the network, and a batch of one sample.

    Raises:
        UserError: if the target is neither, or cannot be read.
    """
    if (target / "student.json").is_file():
        return _load_export(target)
    from kd_lightning.experiments.cost import measure

    student = load_student(str(target), [])
    costs = measure(student.module.net, student.spec, batches=())
    metrics = {}
    if student.run is not None:
        for name, value in student.run.metrics.items():
            if name.startswith("test_"):
                metrics[name] = value
    deployed = student.deployed()

    def predict(raw: tuple[Tensor, ...]) -> Tensor:
        with torch.inference_mode():
            probabilities: Tensor = deployed(*raw)
        return probabilities

    loaded = Loaded(
        "checkpoint",
        int(costs["file_bytes"]),
        costs["parameters"],
        costs["flops"],
        metrics,
    )
    return loaded, predict, student.sample


def _load_export(folder: Path) -> tuple[Loaded, Predictor, tuple[Tensor, ...]]:
    content = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    export_format = find_format(content["format"])
    kind = content["format"]
    if content.get("int8"):
        kind += " int8"
    sample = []
    for described in content["inputs"]:
        shape = [1, *described["shape"][1:]]
        # Values do not change the duration, only shapes and types do.
        sample.append(torch.zeros(shape, dtype=getattr(torch, described["dtype"])))
    size = (folder / export_format.file).stat().st_size
    loaded = Loaded(
        kind, size, content["parameters"], content["flops"], content["metrics"]
    )
    return loaded, export_format.read(folder), tuple(sample)


def measure_passes(
    predict: Predictor,
    sample: tuple[Tensor, ...],
    batch: int,
) -> Timing:
    """Run forward passes for about a second.

    Args:
        predict: the network.
        sample: a batch of one.
        batch: samples per pass.
    """
    repeated = []
    for tensor in sample:
        view = tensor.expand(batch, *tensor.shape[1:])
        repeated.append(view.contiguous())
    raw = tuple(repeated)
    # The network and its weights are in memory; the passes add their activations.
    before = _resident_bytes("VmRSS")
    # The first passes allocate memory and choose kernels.
    for _ in range(WARM_UP_PASSES):
        predict(raw)
    energy_before = _energy_uj()
    # One duration per pass, because percentiles need them.
    durations_s = []
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        began = time.perf_counter()
        predict(raw)
        durations_s.append(time.perf_counter() - began)
    energy_after = _energy_uj()
    samples = len(durations_s) * batch
    millijoules = None
    # The counter starts again from 0 after some minutes.
    if energy_before is not None and energy_after is not None:
        used_uj = energy_after - energy_before
        if used_uj >= 0:
            millijoules = used_uj / 1000 / samples
    ordered = sorted(durations_s)
    place_of_p95 = int(0.95 * (len(ordered) - 1))
    peak_bytes = _resident_bytes("VmHWM") - before
    return Timing(
        batch=batch,
        p50_ms=1000 * statistics.median(ordered),
        p95_ms=1000 * ordered[place_of_p95],
        per_second=samples / sum(durations_s),
        peak_bytes=max(0, peak_bytes),
        millijoules=millijoules,
    )


def _resident_bytes(entry: str) -> int:
    """Memory of this process by its entry in Linux's status file; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    return 0


def _energy_uj() -> int | None:
    try:
        return int(ENERGY.read_text())
    except (OSError, ValueError):
        return None


def main(target: str) -> None:
    """Load the target, then measure once for each batch size on standard input."""

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    loaded, predict, sample = load(Path(target))
    # The parent reads one line of JSON per answer.
    print(json.dumps(asdict(loaded)), flush=True)
    for line in sys.stdin:
        timing = measure_passes(predict, sample, int(line))
        print(json.dumps(asdict(timing)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
