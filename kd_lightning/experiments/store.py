"""The store of runs: which runs are finished, and which of them differ from a run only in code.

Each run's folder is named by the address of its key and holds the key as `key.json`. Runs that were
finished before `key.json` existed have their keys in the `jobs.json` of their experiments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kd_lightning.experiments.keys import Key, address, changed_names, is_code
from kd_lightning.runs.configs import MOVED
from kd_lightning.runs.folder import read_json, write_json
from kd_lightning.weights import sha256_of


@dataclass(frozen=True)
class StoredRun:
    """A run in the store.

    Attributes:
        folder: the run's folder.
        key: the key under which the run was finished.
    """

    folder: Path
    key: dict[str, Any]


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a run's `run.json`; empty if there is none."""
    return read_json(folder / "run.json")


def is_finished(record: Mapping[str, object], may_fail: bool = False) -> bool:
    """Return whether the content of a `run.json` is that of a finished run.

    Args:
        record: the content.
        may_fail: whether a failed run counts as finished.
    """
    status = record.get("status")
    return status == "finished" or (may_fail and status == "failed")


def write_proof(folder: Path) -> None:
    """Record in `run.json` the checksums by which a later change of the run is noticed."""
    record = read_record(folder)
    record["stored"] = {
        "checkpoint": _checkpoint_sha256(folder),
        "metrics": _metrics_sha256(record),
    }
    write_json(folder / "run.json", record)


def alteration(folder: Path, record: Mapping[str, Any]) -> str | None:
    """How a run was changed after the experiment finished it; `None` if it was not.

    Args:
        folder: of the run.
        record: the content of its `run.json`; runs of earlier versions have no checksums.
    """
    stored = record.get("stored")
    if not isinstance(stored, Mapping):
        return None
    checkpoint = _checkpoint_sha256(folder)
    # Deleting checkpoints to save space changes no result.
    if checkpoint is not None and stored.get("checkpoint") not in (None, checkpoint):
        return "last.ckpt changed after the run was finished"
    if stored.get("metrics") not in (None, _metrics_sha256(record)):
        return "the metrics in run.json changed after the run was finished"
    return None


def stored_checkpoint(record: Mapping[str, Any]) -> str | None:
    """The checksum of a run's last checkpoint when it was finished, if it is known."""
    stored = record.get("stored")
    checksum = stored.get("checkpoint") if isinstance(stored, Mapping) else None
    if not isinstance(checksum, str):
        return None
    return checksum


def _metrics_sha256(record: Mapping[str, Any]) -> str:
    text = json.dumps(record.get("metrics"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checkpoint_sha256(folder: Path) -> str | None:
    path = folder / "checkpoints" / "last.ckpt"
    try:
        state = path.stat()
    except OSError:
        return None
    return _file_sha256(path, state.st_mtime_ns, state.st_size)


@cache
def _file_sha256(path: Path, modified: int, size: int) -> str:
    """The checksum of a file, computed again if its time stamp or size changes."""
    return sha256_of(path)


def write_key(folder: Path, key: Key) -> None:
    """Store the key of a run in its folder."""
    write_json(folder / "key.json", dict(key))


class FinishedRuns:
    """Finds finished runs whose keys equal a given key except for code and versions.

    Args:
        store: folder of the runs.
        output: folder of the results of the experiment that looks for them.
    """

    def __init__(self, store: Path, output: Path) -> None:
        runs: dict[Path, StoredRun] = {}
        for run in _stored_runs(store, output):
            # A later entry replaces an earlier one, and the folder's own key comes last.
            runs[run.folder] = run
        self._by_settings: dict[str, list[StoredRun]] = {}
        for run in runs.values():
            settings = _settings_address(run.key)
            self._by_settings.setdefault(settings, []).append(run)

    def find(self, key: Key, may_fail: bool = False) -> StoredRun | None:
        """Return the run that finished last among those with equal settings; None if there is none.

        Args:
            key: the key of the run that is looked for.
            may_fail: whether a failed run counts as finished.
        """
        finished = []
        for run in self._by_settings.get(_settings_address(key), []):
            record = read_record(run.folder)
            is_unchanged = alteration(run.folder, record) is None
            if is_finished(record, may_fail) and is_unchanged:
                finished.append(run)
        return max(finished, key=_finish_time, default=None)


def _stored_runs(store: Path, output: Path) -> Iterator[StoredRun]:
    """Yield the runs whose keys are known, whether they are finished or not."""
    # Experiments are named PAPER/EXPERIMENT or EXPERIMENT, and so are their results' folders,
    # which lie beside the store by default.
    results = list(store.parent.glob("*/jobs.json"))
    # The results of a paper's experiments lie one folder deeper.
    results += store.parent.glob("*/*/jobs.json")
    # The experiment's own results come last, so that they take precedence.
    for path in (*sorted(results), output / "jobs.json"):
        for job in read_json(path).values():
            # Another program may name a file like this one.
            if not isinstance(job, dict) or "address" not in job or "key" not in job:
                continue
            yield StoredRun(store / job["address"], job["key"])
    for path in sorted(store.glob("*/key.json")):
        yield StoredRun(path.parent, read_json(path))


def _settings_address(key: Key) -> str:
    """Return the address of a key's entries about settings and data, without those about code."""
    settings = {}
    for name, value in key.items():
        if is_code(name):
            continue
        # Keys of earlier versions name classes that have moved since.
        if isinstance(value, str):
            settings[name] = MOVED.get(value, value)
        else:
            settings[name] = value
    return address(settings)


def _finish_time(run: StoredRun) -> int:
    return (run.folder / "run.json").stat().st_mtime_ns


def record_acceptance(folder: Path, accepted_key: Key, key: Key) -> None:
    """Note in the `run.json` of an accepted run for which key it was accepted, once per key.

    Args:
        folder: folder of the run.
        accepted_key: the key under which the run was finished.
        key: the key that the run would have today.
    """
    record = read_record(folder)
    accepted = record.setdefault("accepted", [])
    today = address(key)
    for entry in accepted:
        if entry["address"] == today:
            return
    accepted.append({"address": today, "changed": changed_names(accepted_key, key)})
    write_json(folder / "run.json", record)
