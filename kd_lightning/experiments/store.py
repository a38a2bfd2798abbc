"""The store of runs: which runs are finished, and which of them differ from a run only in code.

Each run's folder is named by the address of its key and holds the key as `key.json`. Runs that were
finished before `key.json` existed have their keys in the `jobs.json` of their experiments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_lightning.experiments.keys import Key, address, changed_names, is_code
from kd_lightning.runs.configs import MOVED
from kd_lightning.runs.folder import read_json, write_json


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
            if is_finished(record, may_fail):
                finished.append(run)
        return max(finished, key=_finish_time, default=None)


def _stored_runs(store: Path, output: Path) -> Iterator[StoredRun]:
    """Yield the runs whose keys are known, whether they are finished or not."""
    # Experiments are named PAPER/EXPERIMENT or EXPERIMENT, and so are their results' folders,
    # which lie beside the store by default.
    results = [*store.parent.glob("*/jobs.json"), *store.parent.glob("*/*/jobs.json")]
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
