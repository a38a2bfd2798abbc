"""What reading a large cache keeps in memory: `python benchmarks/caches/memory.py`.

Writes caches of the layout that `kd cache --top-k` gives (random values: what is kept depends on sizes alone) and reads them in
random order, batch by batch, as training does, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kd_lightning.runs.folder import commit, hardware, write_json
from kd_lightning.teachers.cache.manifest import Column, Manifest
from kd_lightning.teachers.cache.table import Table
from kd_lightning.teachers.cache.writer import Writer

BATCH = 256


def write(folder: Path, rows: int, views: int, k: int) -> int:
    """A cache of that many rows and views in top-k fp16; returns its bytes."""
    columns = {
        "values": Column("float16", (k,)),
        "indices": Column("int16", (k,)),
        "rest": Column("float32", ()),
    }
    writer, random = Writer(folder, {}, {}, columns, BATCH), np.random.default_rng(0)
    for view in range(views):
        for number, start, stop in writer.open(f"train/{view}", np.arange(rows)):
            n = stop - start
            values = {
                name: random.integers(0, 99, (n, *c.shape)).astype(c.dtype)
                for name, c in columns.items()
            }
            writer.put(f"train/{view}", number, values)
    return writer.manifest.bytes


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read(folder: Path, budget: int) -> tuple[int, float]:
    """Bytes that all tables, and 400 batches read of each, added to memory at most; and microseconds a sample."""
    manifest = Manifest.read(folder)
    tables = manifest.content["tables"]
    rows = sum(shard["rows"] for shard in next(iter(tables.values()))["shards"])
    order = torch.from_numpy(np.random.default_rng(1).permutation(rows)[: 400 * BATCH].copy())
    count, seconds = 0, 0.0
    before = most = resident()
    for table in [Table(manifest, name, manifest.bytes <= budget) for name in tables]:
        table.read(order[:BATCH])  # reads the shard through, for its checksum
        started = time.perf_counter()
        for first in range(0, len(order), BATCH):
            table.read(order[first : first + BATCH])
        seconds += time.perf_counter() - started
        count, most = count + len(order), max(most, resident())
    return most - before, 1e6 * seconds / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=1_281_167, help="samples: ImageNet-1k's by default"
    )
    parser.add_argument("--views", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--budget-mb", type=int, default=256, help="as CachedTeacher has it")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("memory.json"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(*read(options.read, options.budget_mb * 2**20))
        return
    found = []
    for views in options.views:
        with tempfile.TemporaryDirectory() as folder:
            size = write(Path(folder), options.rows, views, options.top_k)
            command = [
                sys.executable,
                __file__,
                "--read",
                folder,
                f"--budget-mb={options.budget_mb}",
            ]
            added, micros = map(
                float,
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(),
            )
        found.append(
            {
                "views": views,
                "cache_mb": size / 2**20,
                "added_mb": added / 2**20,
                "us_a_sample": micros,
            }
        )
        print(
            f"{views} views, {size / 2**20:,.0f} MB: {added / 2**20:.0f} MB in memory, {micros:.2f} us a sample"
        )
    content = {
        "found": found,
        "rows": options.rows,
        "top_k": options.top_k,
        "commit": commit(),
        "hardware": hardware(),
    }
    write_json(options.output, content)


if __name__ == "__main__":
    main()
