"""Runs one job to its end, from where it stopped."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.experiments.planning import Job
from kd_lightning.experiments.store import write_key, write_proof
from kd_lightning.runs.folder import write_json
from kd_lightning.runs.lock import in_use
from kd_lightning.values import Value
from kd_lightning.weights import read_file

Launch = Callable[[list[str]], Any]
"""Runs the arguments of `kd` to the end."""


def execute(job: Job, launch: Launch) -> list[str]:
    """Run one job to its end, from where it stopped, and store its key in its folder.

    Returns:
        Notes on what was trained again, one line each.

    Raises:
        UserError: if the run fails, unless its failure counts as finished.
    """
    # Another job with the same key may have finished meanwhile.
    if job.finished:
        return []
    notes: list[str] = []
    try:
        _discard_altered(job, notes)
        if job.is_cache:
            _cache(job, launch)
        else:
            _train(job, launch, notes)
    except UserError:
        # Some experiments look for the settings at which training diverges.
        if not job.finished:
            raise
    finally:
        # A run's trainer, networks and data refer to each other, and the objects are too few for
        # the garbage collector to start by itself.
        gc.collect()
    write_key(job.folder, job.key)
    write_proof(job.folder)
    return notes


def _discard_altered(job: Job, notes: list[str]) -> None:
    """Remove a run that was changed after it was finished, or whose teacher changed."""
    if in_use(job.folder):
        raise UserError(f"{job.folder} is in use by another process; wait for it")
    altered = job.alteration
    if altered is not None:
        notes.append(f"{altered}; it is run again")
        shutil.rmtree(job.folder)


def _train(job: Job, launch: Launch, notes: list[str]) -> None:
    checkpoint = _readable_checkpoint(job, notes)
    if checkpoint is not None:
        launch([*job.argv, f"--ckpt_path={checkpoint}"])
        return
    # Without a checkpoint there is nothing to resume.
    shutil.rmtree(job.folder, ignore_errors=True)
    launch(job.argv)


def _readable_checkpoint(job: Job, notes: list[str]) -> Path | None:
    """The last checkpoint, or the best one if the last one is damaged; `None` for a new start."""
    if not job.checkpoint.is_file():
        return None
    if _is_readable(job.checkpoint):
        return job.checkpoint
    best = job.checkpoint.with_name("best.ckpt")
    if best.is_file() and _is_readable(best):
        notes.append("last.ckpt cannot be read; the run resumes from best.ckpt")
        return best
    notes.append("last.ckpt cannot be read; the run starts over")
    return None


def _is_readable(path: Path) -> bool:
    try:
        read_file(path, path.name)
    except UserError:
        return False
    return True


def _cache(job: Job, launch: Launch) -> None:
    started = time.monotonic()
    # `kd cache` itself resumes a cache that is not complete.
    launch(job.argv)
    seconds = time.monotonic() - started
    cache_bytes = 0
    for path in job.folder.glob("*.bin"):
        cache_bytes += path.stat().st_size
    record: dict[str, Value] = {
        "status": "finished",
        "wall_time_s": round(seconds, 3),
        "metrics": {"cache_bytes": cache_bytes},
    }
    write_json(job.folder / "run.json", record)
