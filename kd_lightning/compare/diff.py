"""What differs between runs: settings, data, code and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kd_lightning.compare.differences import differing_settings
from kd_lightning.compare.references import ReferenceResolver
from kd_lightning.compare.runs import Run, read_run
from kd_lightning.compare.settings import Reference, Settings
from kd_lightning.errors import UserError
from kd_lightning.experiments.keys import is_code
from kd_lightning.experiments.report import Cells, csv_text, markdown_table
from kd_lightning.runs.folder import RunFolder, read_json
from kd_lightning.values import Values, mapping_at

DIFF_FORMATS = ("terminal", "markdown", "csv", "json")
"""The values of `--format` with `--diff`."""

NOT_USED = "not used"
"""Stands for the version of a file that a run does not reach."""

_DIGITS = 12
"""How many digits of a checksum are shown."""


@dataclass(frozen=True)
class Difference:
    """One thing in which runs differ.

    Attributes:
        kind: "setting", "data", "teacher", "code" or "version".
        name: of the setting, split, file or package.
        values: of each run, as texts.
    """

    kind: str
    name: str
    values: Sequence[str]


def find_differences(runs: Sequence[Run]) -> list[Difference]:
    """Compare runs by what decides their results.

    Args:
        runs: from folders, at least two.
    """
    # In the order of a reader's questions: what was set, read and run.
    differences = _settings(runs)
    differences += _of_kind("setting", [{"seed": str(run.seed)} for run in runs])
    differences += _of_kind("data", [_data(run) for run in runs])
    differences += _of_kind("teacher", [_teacher(run) for run in runs])
    differences += _code(runs)
    differences += _of_kind("version", [_versions(run) for run in runs])
    return differences


def _settings(runs: Sequence[Run]) -> list[Difference]:
    """The settings that differ; paths of other runs stand for those runs' settings."""
    resolver = ReferenceResolver(runs)
    groups: list[Settings] = []
    for run in runs:
        settings = {}
        for name, value in resolver.settings(run).items():
            # Code and samples are compared one by one below.
            if name not in run.origin:
                settings[name] = value
        groups.append(settings)
    differences = []
    for name, texts in differing_settings(groups).items():
        shown = [text or NOT_USED for text in texts]
        # Two teachers may have one name.
        if len(set(shown)) == 1:
            pairs = zip(shown, groups, strict=True)
            shown = [_with_key(text, group, name) for text, group in pairs]
        differences.append(Difference("setting", name, shown))
    return differences


def _with_key(text: str, settings: Settings, name: str) -> str:
    """The label of a reference to another run, with a digest of its settings."""
    value = settings.get(name)
    if isinstance(value, Reference):
        return f"{text} ({value.key[:_DIGITS]})"
    return text


def _of_kind(kind: str, values: Sequence[Mapping[str, str]]) -> list[Difference]:
    """The names whose values differ between runs."""
    # A dict keeps the order of the first run.
    names: dict[str, None] = {}
    for of_run in values:
        names.update(dict.fromkeys(of_run))
    differences = []
    for name in names:
        shown = [of_run.get(name, "unknown") for of_run in values]
        if len(set(shown)) > 1:
            differences.append(Difference(kind, name, shown))
    return differences


def _record(run: Run) -> Values:
    if run.folder is None:
        return {}
    return run.folder.record


def _data(run: Run) -> dict[str, str]:
    """The description of the data, and the checksums of its samples."""
    values = {}
    for name in ("data", "num_classes", "mean", "std"):
        if run.data.get(name) is not None:
            values[name] = str(run.data[name])
    for split, count in mapping_at(run.data, "samples").items():
        values[f"{split} samples"] = str(count)
    for split, checksum in mapping_at(_record(run), "data_sha256").items():
        values[f"{split} sha256"] = str(checksum)[:_DIGITS]
    return values


def _teacher(run: Run) -> dict[str, str]:
    """The checksums of the teachers' weights."""
    checksums = []
    # Of the weights, not their paths: a copy is the same teacher.
    for source in run.teacher_sources:
        checksums.append(str(source.get("sha256"))[:_DIGITS])
    return {"sha256": ", ".join(checksums) or "none"}


def _versions(run: Run) -> dict[str, str]:
    values = {}
    for name, version in mapping_at(_record(run), "versions").items():
        values[name] = str(version)
    return values


def _code(runs: Sequence[Run]) -> list[Difference]:
    """The files whose versions differ; the commits, if a run has no key."""
    versions = []
    for run in runs:
        of_files = {}
        for name, version in _key(run.folder).items():
            if is_code(name):
                of_files[name.removeprefix("code.")] = str(version)
        versions.append(of_files)
    # Runs of `kd fit` have no key; their commit stands for all files.
    if not all(versions):
        commits = [{"commit": str(_record(run).get("commit"))} for run in runs]
        return _of_kind("code", commits)
    names: dict[str, None] = {}
    for of_files in versions:
        names.update(dict.fromkeys(sorted(of_files)))
    differences = []
    for name in names:
        shown = [of_files.get(name, NOT_USED)[:_DIGITS] for of_files in versions]
        if len(set(shown)) > 1:
            differences.append(Difference("code", name, shown))
    return differences


def _key(folder: RunFolder | None) -> Values:
    """The key under which an experiment stored a run; empty for other runs."""
    if folder is None:
        return {}
    return read_json(folder.path / "key.json")


def differences_table(runs: Sequence[Run], labels: Sequence[str]) -> Cells:
    """What differs, one line per difference and one column per run.

    Args:
        runs: from folders, at least two.
        labels: of the runs.
    """
    lines = []
    for difference in find_differences(runs):
        lines.append([difference.kind, difference.name, *difference.values])
    return Cells(["kind", "name", *labels], lines)


def diff_text(paths: Sequence[str], format_name: str) -> str:
    """The differences of two runs as text.

    Args:
        paths: of the folders, as the user wrote them.
        format_name: one of `DIFF_FORMATS`.

    Raises:
        UserError: if a path is not a run.
    """
    if format_name not in DIFF_FORMATS:
        raise UserError(
            f"kd compare: --diff has no format {format_name}; "
            f"valid: {', '.join(DIFF_FORMATS)}"
        )
    runs = [read_run(path) for path in paths]
    if format_name == "json":
        differences = [asdict(difference) for difference in find_differences(runs)]
        content = {"runs": list(paths), "differences": differences}
        return json.dumps(content, indent=2) + "\n"
    cells = differences_table(runs, paths)
    if format_name == "csv":
        return csv_text(cells.headings, cells.lines)
    # An empty table would look like a failure.
    if not cells.lines:
        return "Settings, data and code of both runs are the same.\n"
    if format_name == "markdown":
        return "\n".join(markdown_table(*cells)) + "\n"
    from kd_lightning.compare.output import table_text

    return table_text(cells)
