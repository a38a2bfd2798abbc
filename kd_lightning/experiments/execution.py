"""Runs one job to its end, from where it stopped."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.experiments.planning import Job
from kd_lightning.experiments.store import write_key
from kd_lightning.runs.folder import write_json

Launch = Callable[[list[str]], Any]
"""Runs the arguments of `kd` to the end."""


def execute(job: Job, launch: Launch) -> None:
    """Run one job to its end, from where it stopped, and store its key in its folder.

    Raises:
        UserError: if the run fails, unless its failure counts as finished.
    """
    # Another job with the same key may have finished meanwhile.
    if job.finished:
        return
    try:
        if job.is_cache:
            _cache(job, launch)
        else:
            _train(job, launch)
    except UserError:
        # Some experiments look for the settings at which training diverges.
        if not job.finished:
            raise
    finally:
        # A run's trainer, networks and data refer to each other, and the objects are too few for
        # the garbage collector to start by itself.
        gc.collect()
    write_key(job.folder, job.key)


def _train(job: Job, launch: Launch) -> None:
    if job.checkpoint.is_file():
        launch([*job.argv, f"--ckpt_path={job.checkpoint}"])
        return
    # Without a checkpoint there is nothing to resume.
    shutil.rmtree(job.folder, ignore_errors=True)
    launch(job.argv)


def _cache(job: Job, launch: Launch) -> None:
    started = time.monotonic()
    # `kd cache` itself resumes a cache that is not complete.
    launch(job.argv)
    seconds = time.monotonic() - started
    cache_bytes = sum(path.stat().st_size for path in job.folder.glob("*.bin"))
    record = {
        "status": "finished",
        "wall_time_s": round(seconds, 3),
        "metrics": {"cache_bytes": cache_bytes},
    }
    write_json(job.folder / "run.json", record)
