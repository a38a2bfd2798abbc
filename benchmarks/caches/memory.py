"""Measure the memory that reading a large cache occupies: `python benchmarks/caches/memory.py`.

Writes caches with the layout of `kd cache --top-k` and reads them in random order, batch by batch,
as training does. The values are random, because the memory depends only on sizes. Each cache is
read in a process of its own.
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
from kd_lightning.teachers.cache.packing import packed_size
from kd_lightning.teachers.cache.table import Table
from kd_lightning.teachers.cache.writer import Writer

BATCH_SIZE = 256
CLASSES = 1000
NUM_BATCHES = 400


def write_cache(folder: Path, num_rows: int, views: int, top_k: int) -> int:
    """Write a cache of top-k logits in fp16.

    Args:
        folder: folder of the cache.
        num_rows: samples per view.
        views: number of views.
        top_k: logits per sample.

    Returns:
        Its size in bytes.
    """
    columns = {
        "values": Column("float16", (top_k,)),
        "ids": Column("uint8", (packed_size(top_k, CLASSES),)),
        # At temperature 1, for metrics, and at that of one loss.
        "rest": Column("float32", (2,)),
    }
    writer = Writer(folder, {}, {}, columns, BATCH_SIZE)
    generator = np.random.default_rng(0)
    for view in range(views):
        table = f"train/{view}"
        for number, start, stop in writer.open(table, np.arange(num_rows)):
            values = {}
            for name, column in columns.items():
                shape = (stop - start, *column.shape)
                values[name] = generator.integers(0, 99, shape).astype(column.dtype)
            writer.put(table, number, values)
    return writer.manifest.bytes


def resident_bytes() -> int:
    """Bytes of this process in memory, including mapped files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def read_cache(folder: Path, budget: int) -> tuple[int, float]:
    """Open all tables of a cache, and read 400 batches of each.

    Args:
        folder: folder of the cache.
        budget: size in bytes up to which a cache is memory-mapped.

    Returns:
        The largest increase of resident memory in bytes, and microseconds per sample.
    """
    manifest = Manifest.read(folder)
    tables = manifest.content["tables"]
    first_table = next(iter(tables.values()))
    num_rows = sum(shard["rows"] for shard in first_table["shards"])
    permutation = np.random.default_rng(1).permutation(num_rows)
    order = torch.from_numpy(permutation[: NUM_BATCHES * BATCH_SIZE].copy())
    samples = 0
    seconds = 0.0
    before = resident_bytes()
    peak = before
    mapped = manifest.bytes <= budget
    for table in [Table(manifest, name, mapped) for name in tables]:
        # The first read verifies the checksums of the shards and is not timed.
        table.read(order[:BATCH_SIZE])
        started = time.perf_counter()
        for start in range(0, len(order), BATCH_SIZE):
            table.read(order[start : start + BATCH_SIZE])
        seconds += time.perf_counter() - started
        samples += len(order)
        peak = max(peak, resident_bytes())
    return peak - before, 1e6 * seconds / samples


def measure(num_rows: int, views: int, top_k: int, budget_mb: int) -> dict[str, float]:
    """Write a cache, and read it in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_cache(Path(folder), num_rows, views, top_k)
        command = [
            sys.executable,
            __file__,
            "--read",
            folder,
            f"--budget-mb={budget_mb}",
        ]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    added, microseconds = map(float, process.stdout.split())
    return {
        "views": views,
        "cache_mb": size / 2**20,
        "added_mb": added / 2**20,
        "us_a_sample": microseconds,
    }


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows",
        type=int,
        default=1_281_167,
        help="samples; by default those of ImageNet-1k",
    )
    parser.add_argument(
        "--views",
        type=int,
        nargs="+",
        default=[2, 20],
        help="views of each measured cache",
    )
    parser.add_argument("--top-k", type=int, default=10, help="logits per sample")
    parser.add_argument(
        "--budget-mb", type=int, default=256, help="memory budget, as in CachedTeacher"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("memory.json")
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure one cache per number of views, print and write the results."""
    options = parse_options()
    if options.read:
        print(*read_cache(options.read, options.budget_mb * 2**20))
        return
    results = []
    for views in options.views:
        result = measure(options.rows, views, options.top_k, options.budget_mb)
        results.append(result)
        print(
            f"{views} views, {result['cache_mb']:,.0f} MB: {result['added_mb']:.0f} MB in memory, "
            f"{result['us_a_sample']:.2f} us per sample"
        )
    content = {
        "found": results,
        "rows": options.rows,
        "top_k": options.top_k,
        "commit": commit(),
        "hardware": hardware(),
    }
    write_json(options.output, content)


if __name__ == "__main__":
    main()
