"""Measure the memory of a step over a large vocabulary: `python benchmarks/memory/row_chunks.py`.

Trains a small language model on 2,048 positions with 49,152 tokens, with the logits of all
positions at once and in chunks of rows (`model.row_chunk`). Each measurement is a process of its
own, and its memory is the largest that the operating system saw.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from kd_lightning.losses import KD, CrossEntropy, DistillLoss
from kd_lightning.models import CausalLanguageModel
from kd_lightning.runs.folder import commit, hardware, write_json
from kd_lightning.sparse import TopKOutput
from kd_lightning.tasks import LanguageModelling
from kd_lightning.training import Learner, Objective
from kd_lightning.types import Batch, Output
from kd_lightning.values import Values

VOCABULARY = 49_152
LENGTH = 256
BLOCKS = 8
WIDTH = 192
TOP_K = 64

TEACHERS = ("none", "top-k", "live")
"""Cross-entropy alone; with KD from a cache of 64 tokens; with KD from a network."""


def network(seed: int) -> CausalLanguageModel:
    """A language model of two layers with random weights."""
    architecture: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return CausalLanguageModel(architecture=architecture, num_classes=VOCABULARY)


def learner_of(seed: int, row_chunk: int | None) -> Learner:
    """A network with one row of logits per position."""
    learner = Learner(network(seed), task=LanguageModelling())
    learner.row_chunk = row_chunk
    return learner


def random_batch() -> Batch:
    """Blocks of random tokens."""
    ids = torch.randint(VOCABULARY, (BLOCKS, LENGTH + 1))
    return Batch({"input_ids": ids[:, :-1]}, ids[:, 1:], torch.arange(BLOCKS))


def stored_top_k(positions: int) -> TopKOutput:
    """What a top-k cache holds of as many positions, with random numbers."""
    indices = torch.rand(positions, 1024).argsort(1)[:, :TOP_K]
    values = torch.randn(positions, TOP_K)
    rest = torch.randn(positions, 1)
    return TopKOutput(values, indices, rest, (1.0,), VOCABULARY)


def measure(teacher: str, row_chunk: int | None, steps: int) -> dict[str, float]:
    """Run some steps in this process.

    Args:
        teacher: one of `TEACHERS`, or "network": no loss at all, only the network's states.
        row_chunk: rows whose logits are in memory together; `None`: all.
        steps: the first one is not timed.

    Returns:
        The peak memory in MB, the median of the processor's seconds per step, and the last loss.
    """
    student = learner_of(0, row_chunk)
    teacher_network = learner_of(1, row_chunk) if teacher == "live" else None
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy()}
    if teacher in ("top-k", "live"):
        losses["kd"] = KD(temperature=1.0)
    objective = Objective(losses)
    objective.begin_epoch(0)
    torch.manual_seed(2)
    batch = random_batch()
    stored = stored_top_k(batch.num_rows) if teacher == "top-k" else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    seconds = []
    loss = torch.zeros(())
    for _ in range(steps):
        # Of the processor, because a busy machine delays a step but does not add work to it.
        started = time.process_time()
        target: Output | None = stored
        if teacher_network is not None:
            with torch.no_grad():
                target = teacher_network(batch)
        if teacher == "network":
            assert isinstance(batch.inputs, dict)
            states = student.network(**batch.inputs, states_only=True)
            loss = states.square().mean()
        else:
            loss = objective(student(batch), target, batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_mb": peak / 1024,
        "seconds": statistics.median(seconds[1:]),
        "loss": float(loss.detach()),
    }


def in_child(teacher: str, row_chunk: int | None, steps: int) -> dict[str, float]:
    """The same in a process of its own, which has imported what is needed already."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (teacher, row_chunk, steps))


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[64], help="rows per chunk"
    )
    parser.add_argument("--steps", type=int, default=2, help="steps per measurement")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("row_chunks.json")
    )
    return parser.parse_args()


def write_rows(file: Path, rows: list[Values]) -> None:
    """Write the measurements so far, with what they were made on."""
    content: Values = {
        "rows": rows,
        "positions": BLOCKS * LENGTH,
        "tokens": VOCABULARY,
        "hidden_size": WIDTH,
        "commit": commit(),
        "hardware": hardware(),
    }
    write_json(file, content)


def main() -> None:
    """Measure every teacher with each size of a chunk, and print a table."""
    options = parse_options()
    floor = in_child("network", None, options.steps)
    print(f"without logits: {floor['peak_mb']:,.0f} MB")
    rows: list[Values] = [{"teacher": "network", "row_chunk": None, **floor}]
    print("| teacher | row_chunk | peak, MB | CPU s per step | loss |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for teacher in TEACHERS:
        for row_chunk in (None, *options.chunks):
            measured = in_child(teacher, row_chunk, options.steps)
            rows.append({"teacher": teacher, "row_chunk": row_chunk, **measured})
            print(
                f"| {teacher} | {row_chunk or 'all'} | {measured['peak_mb']:,.0f} | "
                f"{measured['seconds']:.1f} | {measured['loss']:.6f} |",
                flush=True,
            )
            write_rows(options.output, rows)


if __name__ == "__main__":
    main()
