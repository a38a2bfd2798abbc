"""The settings that decide a run's result; paths of other runs stand for those, so that a teacher's seeds are one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from kd_lightning.compare.labels import Reference
from kd_lightning.compare.runs import Run, is_cache, read_run
from kd_lightning.errors import UserError
from kd_lightning.experiments.keys import flat, is_relevant
from kd_lightning.runs.filled import FILLED
from kd_lightning.runs.folder import read_json

_WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved config that decide its result, but for the seed and for what comes from the data."""
    found = {}
    for name, value in flat(config):
        parts = [
            "class" if part == "class_path" else part
            for part in name.split(".")
            if part != "init_args"
        ]
        relevant = name == "run.test" or is_relevant(name)  # run.test: which weights are measured
        if relevant and not set(parts) & set(FILLED) and value not in (None, {}):
            found[".".join(parts)] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """Whole numbers as such: W&B turns 4.0 into 4."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(content: Any) -> str:
    """Equal for equal settings."""
    text = json.dumps(
        content,
        sort_keys=True,
        default=lambda value: value.key if isinstance(value, Reference) else str(value),
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Origins:
    """Finds the runs that paths lead to.

    Args:
        runs: those that are known already; others are read from their folders.

    Attributes:
        lost: paths of weights whose run cannot be read: they count as what they are, by their checksum.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._known: dict[Path, Run | None] = {run.folder: run for run in runs if run.folder}
        self._found: dict[Path, dict[str, Any]] = {}
        self.lost: list[str] = []

    def settings(self, run: Run) -> dict[str, Any]:
        """The run's settings, each path of another run replaced by what that is a run of."""
        if run.folder in self._found:
            return self._found[run.folder]
        found = settings(run.config)
        if run.folder:
            self._found[run.folder] = found  # a run that leads to itself ends here
        found |= {name: self._replaced(value, run) for name, value in found.items()}
        return found

    def _replaced(self, value: Any, run: Run) -> Any:
        if isinstance(value, list):
            return [self._replaced(item, run) for item in value]
        if not isinstance(value, str) or ("/" not in value and not value.endswith(_WEIGHTS)):
            return value
        for path in self._places(value, run):
            if reference := self._reference(path):
                return reference
        if value.endswith(_WEIGHTS) or any(_leads(value, source) for source in run.teacher):
            sums = [source.get("sha256") for source in run.teacher if _leads(value, source)]
            self.lost.append(value)
            return Reference(digest([*sums] or [value]), value)
        return value

    def _places(self, value: str, run: Run) -> Iterator[Path]:
        """Where the path may lead: as the run recorded it, or from any folder above the run's own, or from here."""
        for source in run.teacher:
            yield from (
                Path(source[key]) for key in ("cache", "path") if _leads(value, source, key)
            )
        path = Path(value).expanduser()
        bases = [Path.cwd(), *(run.folder.parents if run.folder else [])]
        yield from [path] if path.is_absolute() else [(base / path).resolve() for base in bases]

    def _reference(self, path: Path) -> Reference | None:
        if is_cache(path):
            manifest = read_json(path / "manifest.json")
            sources = manifest.get("fingerprint", {}).get("teacher", [])
            teachers = [self._reference(Path(source.get("path", ""))) for source in sources]
            keys = [
                t.key if t else source.get("sha256")
                for t, source in zip(teachers, sources, strict=True)
            ]
            names = [
                t.shown if t else str(source.get("network"))
                for t, source in zip(teachers, sources, strict=True)
            ]
            return Reference(
                digest([manifest.get("settings"), keys]),
                f"cache of {'+'.join(dict.fromkeys(names))}",
            )
        owner = self._owner(path.parent.parent) if path.parent.name == "checkpoints" else None
        return Reference(digest([self.settings(owner), path.name]), owner.name) if owner else None

    def _owner(self, folder: Path) -> Run | None:
        if folder not in self._known:
            try:
                self._known[folder] = read_run(str(folder))
            except UserError:
                self._known[folder] = None
        return self._known[folder]


def _leads(value: str, source: Mapping[str, Any], key: str = "") -> bool:
    """Whether a config's path is the one that was recorded in full."""
    parts = tuple(part for part in PurePath(value).parts if part not in (".", ".."))
    recorded = [str(source[k]) for k in ([key] if key else ["cache", "path"]) if source.get(k)]
    return any(PurePath(path).parts[-len(parts) :] == parts for path in recorded if parts)
