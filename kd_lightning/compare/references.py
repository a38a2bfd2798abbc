"""Replaces paths of other runs in a config by those runs' settings.

Students of one teacher's seeds have different checkpoints in their configs, but the same setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import cast

from kd_lightning.compare.runs import Run, read_run
from kd_lightning.compare.settings import (
    Reference,
    SettingValue,
    deciding_settings,
    digest,
)
from kd_lightning.errors import UserError
from kd_lightning.runs.folder import RunFolder, read_json
from kd_lightning.values import Values

_WEIGHT_FILES = (".ckpt", ".pt", ".pth", ".safetensors")

TeacherSource = Values
"""Where a teacher's weights came from: `path`, `sha256`, `network`, perhaps `cache`."""


class ReferenceResolver:
    """Finds the runs that the paths in configs lead to.

    Args:
        runs: runs that are known already; others are read from their folders.

    Attributes:
        unresolved: paths of weights that belong to no readable run; their checksum identifies them.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.unresolved: list[str] = []
        self._runs: dict[Path, Run | None] = {}
        self._settings: dict[Path, dict[str, SettingValue]] = {}
        for run in runs:
            if run.folder is not None:
                self._runs[run.folder.path] = run

    def settings(self, run: Run) -> dict[str, SettingValue]:
        """The settings that decide a run's result, each path of another run as a Reference.

        Args:
            run: from a folder or from W&B.
        """
        folder = run.folder.path if run.folder is not None else None
        if folder in self._settings:
            return self._settings[folder]
        settings = deciding_settings(run.config)
        if folder is not None:
            # Stored before its paths are followed, in case one of them leads back to this run.
            self._settings[folder] = settings
        # Replaced in one step: a run that leads back here must see the original paths.
        resolved = {}
        for name, value in settings.items():
            resolved[name] = self._resolve(value, run)
        settings.update(resolved)
        # Runs of other code or samples are no seeds of one run.
        settings.update(run.origin)
        return settings

    def _resolve(self, value: SettingValue, run: Run) -> SettingValue:
        """The value, with a Reference for every path of another run or of unknown weights."""
        if isinstance(value, list):
            return [self._resolve(item, run) for item in value]
        if not isinstance(value, str):
            return value
        is_weights = value.endswith(_WEIGHT_FILES)
        # Most values are not paths, and checking the disk for each one would be slow.
        if "/" not in value and not is_weights:
            return value
        for path in self._candidates(value, run):
            reference = self._reference(path)
            if reference is not None:
                return reference
        checksums: list[SettingValue] = []
        for source in run.teacher_sources:
            if _is_source(value, source):
                checksums.append(_checksum(source))
        if not is_weights and not checksums:
            return value
        # The run that made these weights is gone, but equal weights are still the same setting.
        self.unresolved.append(value)
        return Reference(digest(checksums or [value]), value)

    def _candidates(self, value: str, run: Run) -> Iterator[Path]:
        """Where a path may lead: as the run recorded it, or from the current or a parent folder."""
        for source in run.teacher_sources:
            for recorded in _recorded_paths(source):
                if _ends_with(recorded, value):
                    yield Path(recorded)
        path = Path(value).expanduser()
        if path.is_absolute():
            yield path
            return
        # `kd` was started in some folder above the run's own, unless the run was moved.
        yield (Path.cwd() / path).resolve()
        if run.folder is not None:
            for parent in run.folder.path.parents:
                yield (parent / path).resolve()

    def _reference(self, path: Path) -> Reference | None:
        """The run of a checkpoint, or a teacher's cache; None if the path is neither."""
        if RunFolder(path).is_cache:
            return self._cache_reference(path)
        if path.parent.name != "checkpoints":
            return None
        run = self._run_of(path.parent.parent)
        if run is None:
            return None
        # The best and the last checkpoint of one run are different settings.
        settings = self.settings(run)
        key = digest([settings, path.name])
        return Reference(key, run.name)

    def _cache_reference(self, folder: Path) -> Reference:
        """A cache is identified by its options and by its teachers."""
        manifest = read_json(folder / "manifest.json")
        keys: list[SettingValue] = []
        labels = []
        for source in _teacher_sources(manifest):
            path = Path(str(source.get("path") or ""))
            teacher = self._reference(path)
            if teacher is not None:
                keys.append(teacher.key)
                labels.append(teacher.label)
            else:
                keys.append(_checksum(source))
                labels.append(str(source.get("network")))
        # All seeds of an ensemble have one label.
        label = "+".join(dict.fromkeys(labels))
        options = manifest.get("settings")
        key = digest([options, keys])
        return Reference(key, f"cache of {label}")

    def _run_of(self, folder: Path) -> Run | None:
        """The run of a folder; None if it cannot be read."""
        if folder not in self._runs:
            try:
                self._runs[folder] = read_run(str(folder))
            except UserError:
                self._runs[folder] = None
        return self._runs[folder]


def _teacher_sources(manifest: Values) -> list[TeacherSource]:
    """The teachers that a cache's manifest names; none if it is damaged."""
    fingerprint = manifest.get("fingerprint")
    if not isinstance(fingerprint, dict):
        return []
    sources = fingerprint.get("teacher")
    if not isinstance(sources, list):
        return []
    return [source for source in sources if isinstance(source, dict)]


def _checksum(source: TeacherSource) -> SettingValue:
    """The checksum of a teacher's weights, if it is known."""
    return cast(SettingValue, source.get("sha256"))


def _recorded_paths(source: TeacherSource) -> list[str]:
    """The paths under which a run knew a teacher."""
    paths = []
    for key in ("cache", "path"):
        if source.get(key):
            paths.append(str(source[key]))
    return paths


def _is_source(value: str, source: TeacherSource) -> bool:
    """Whether a path in a config leads to these weights of a teacher."""
    return any(_ends_with(recorded, value) for recorded in _recorded_paths(source))


def _ends_with(recorded: str, value: str) -> bool:
    """Whether a recorded path ends in the config's path, which may be relative."""
    all_parts = PurePath(value).parts
    parts = tuple(part for part in all_parts if part not in (".", ".."))
    # Everything ends in nothing.
    if not parts:
        return False
    ending = PurePath(recorded).parts[-len(parts) :]
    return ending == parts
