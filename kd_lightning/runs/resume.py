"""Whether a run can be resumed as asked, and what a resumed run may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from kd_lightning.errors import UserError
from kd_lightning.masking import masked_config
from kd_lightning.runs.build import BuiltRun
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.fingerprint import data_fingerprint
from kd_lightning.runs.folder import RunFolder
from kd_lightning.runs.parsing import parse_resolved, plain_config, run_parser
from kd_lightning.runs.settings import flat, option_of
from kd_lightning.runs.spec_arguments import SPEC_ARGUMENTS
from kd_lightning.values import Value, Values, mapping_at
from kd_lightning.weights import KEY

HOW_LONG = (
    "trainer.max_epochs",
    "trainer.min_epochs",
    "trainer.max_steps",
    "trainer.min_steps",
    "trainer.max_time",
)
"""Settings that decide when training ends."""

MAY_CHANGE = (
    *HOW_LONG,
    # Where a run trains.
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    # What is shown and logged.
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
    "trainer.default_root_dir",
    # How data is found and served; a checksum of the samples is compared.
    "data.init_args.root",
    "data.init_args.download",
    "data.init_args.resident",
    "data.init_args.prefetch",
    "data.init_args.workers",
    "data.init_args.num_workers",
    "data.init_args.eval_batch_size",
    "data.init_args.predict_file",
    "ckpt_path",
)
"""Settings that a resumed run may change; so may all of `run`. All others decide what is learned."""

OBSERVERS = (
    "EarlyStopping",
    "LearningRateMonitor",
    "DeviceStatsMonitor",
    "ModelCheckpoint",
    "Timer",
    "RichProgressBar",
    "TQDMProgressBar",
)
"""Callbacks of Lightning that do not change a training step; they may come and go."""

_FILES = ("checkpoint", "checkpoints", "path")
"""Arguments of teachers that name files; their content is compared instead of their names."""

_SHOWN = 3
"""A message names this many settings."""


class Change(NamedTuple):
    """A setting that differs from the run's own.

    Attributes:
        name: in the config.
        old: the run's value.
        new: the value that was given.
    """

    name: str
    old: Value
    new: Value


@dataclass
class Resumed:
    """The run that is resumed, as it was before.

    Attributes:
        folder: of the run.
        record: the content of its run.json.
        changes: the settings that change.
        epoch: the epoch in which training continues.
    """

    folder: Path
    record: Values
    changes: list[Change]
    epoch: int


def folder_of_checkpoint(run: BuiltRun) -> Path | None:
    """The folder of the run whose checkpoint `kd fit --ckpt_path` resumes, if it is a run's."""
    if run.checkpoint is None or run.command != "fit":
        return None
    folder = run.checkpoint.resolve().parent.parent
    if not (folder / "config.yaml").is_file():
        return None
    return folder


def check_resume(run: BuiltRun) -> Resumed | None:
    """Compare a run that is to be resumed with what it was; nothing is written.

    Returns:
        The run as it was; `None` if no run's folder is reused.

    Raises:
        UserError: if a setting, the teacher or the data changed.
    """
    if run.checkpoint is None or run.command != "fit":
        return None
    folder = folder_of_checkpoint(run)
    changes: list[Change] = []
    if folder is not None:
        # The run's config holds no secrets, so that they cannot be compared.
        stored = masked_config(_stored_settings(folder))
        changes = changed_settings(stored, masked_config(run.settings))
        _refuse(changes, run.checkpoint)
    _check_teacher(run)
    if folder is None:
        return None
    record = RunFolder(folder).record
    _check_data(run, record)
    allowed = [change for change in changes if may_change(change)]
    epoch = int(run.checkpoint_content.get("epoch", 0))
    return Resumed(folder, record, allowed, epoch)


def _stored_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run in the form of today's parser, with defaults of newer options."""
    arguments = resolve_configs(["fit", "-c", str(folder / "config.yaml")])
    return plain_config(parse_resolved(run_parser("fit"), arguments[1:]))


def changed_settings(old: Values, new: Values) -> list[Change]:
    """The settings that differ between two resolved configs.

    The callbacks that only observe, and the arguments that come from the data, are not compared.

    Args:
        old: of the run.
        new: as given now.
    """
    old_leaves = dict(flat(_without_observers(old)))
    new_leaves = dict(flat(_without_observers(new)))
    changes = []
    for name in dict.fromkeys([*new_leaves, *old_leaves]):
        if not set(SPEC_ARGUMENTS).isdisjoint(name.split(".")):
            continue
        before = old_leaves.get(name)
        after = new_leaves.get(name)
        # An empty mapping or list sets nothing, like null.
        if before != after and not (_is_off(before) and _is_off(after)):
            changes.append(Change(name, before, after))
    return changes


def _is_off(value: Value) -> bool:
    """Whether a value sets nothing."""
    return value is None or value == {} or value == []


def _without_observers(config: Values) -> dict[str, Value]:
    """A config without the callbacks that change no training step."""
    trainer = dict(mapping_at(config, "trainer"))
    callbacks = trainer.get("callbacks")
    # The Trainer accepts one callback, too.
    if isinstance(callbacks, Mapping):
        callbacks = [callbacks]
    actors = []
    for callback in cast(Sequence[Value], callbacks or []):
        class_path = callback
        if isinstance(callback, Mapping):
            class_path = callback.get("class_path", "")
        module, _, name = str(class_path).rpartition(".")
        if name not in OBSERVERS or not module.startswith("lightning"):
            actors.append(callback)
    trainer["callbacks"] = actors
    return {**config, "trainer": trainer}


def may_change(change: Change) -> bool:
    """Whether a resumed run may change this setting."""
    name = change.name
    # Data may wrap other data, whose settings are judged like those of the outer data.
    while name.startswith("data.init_args.data."):
        name = name.removeprefix("data.init_args.")
    if name.startswith("run.") or name.startswith(MAY_CHANGE):
        return True
    argument = name.rstrip("0123456789.").rpartition(".")[2]
    # The checksum of the teacher's file is compared.
    return name.startswith("model.init_args.teacher") and argument in _FILES


def _refuse(changes: Sequence[Change], checkpoint: Path) -> None:
    """Raise a UserError that names the first settings that must not change, if any did."""
    refused = [change for change in changes if not may_change(change)]
    if not refused:
        return
    # The class of an object says more than the arguments that follow from it.
    refused.sort(key=lambda change: not change.name.endswith(".class_path"))
    first = refused[0]
    others = [option_of(change.name) for change in refused[1:_SHOWN]]
    more = f" (also changed: {', '.join(others)})" if others else ""
    raise UserError(
        f"{option_of(first.name)} is {_show(first.new)}, but this run was trained with "
        f"{_show(first.old)}{more}; resume with the run's own value, or {new_run(checkpoint)}"
    )


def _show(value: Value) -> str:
    """A value as a message shows it."""
    text = "null" if value is None else str(value)
    if len(text) <= 60:
        return text
    return f"{text[:57]}..."


def new_run(checkpoint: Path) -> str:
    """The remedy: a new run from the weights."""
    return f"start a new run from its weights with --model.init_from={checkpoint}"


def _check_teacher(run: BuiltRun) -> None:
    """Compare the checksums of the teacher's files with those in the checkpoint."""
    described = run.checkpoint_content.get(KEY) or {}
    saved = described.get("teacher") or []
    # Files may have moved; only their content counts.
    old = _checksums(saved)
    new = _checksums(cast(Sequence[Values], run.module.provenance()))
    if old == new or not old:
        return
    assert run.checkpoint is not None
    first = saved[0]
    path = first.get("path") or first.get("cache") or first.get("network")
    now = f"{new[0][:12]}" if new else "none"
    raise UserError(
        f"the teacher is not the one that this run was trained with (sha256 {old[0][:12]}, now "
        f"{now}; it was {path}); give that teacher, or {new_run(run.checkpoint)}"
    )


def _checksums(sources: Sequence[Values]) -> list[str]:
    """The checksums of the files that teachers were loaded from."""
    checksums = []
    for source in sources:
        if source.get("sha256"):
            checksums.append(str(source["sha256"]))
    return checksums


def _check_data(run: BuiltRun, record: Values) -> None:
    """Compare the checksums of the samples with those in run.json; older runs have none."""
    stored = record.get("data_sha256")
    if not isinstance(stored, Mapping) or not stored:
        return
    assert run.checkpoint is not None
    present = data_fingerprint(run.datamodule)
    for split, checksum in stored.items():
        if present.get(split) != checksum:
            raise UserError(
                f"the {split} samples changed since this run was trained (sha256 "
                f"{str(checksum)[:12]}, now {str(present.get(split))[:12]}); restore the data, or "
                f"{new_run(run.checkpoint)}"
            )


def check_processes(resumed: Resumed, run: BuiltRun, world_size: int) -> None:
    """Refuse another number of devices within an epoch: samples would repeat or be skipped.

    A batch holds the same number of samples, and each device has batches of its own. So the
    position in an epoch is `batches * batch_size * devices` samples.

    Raises:
        UserError: if the number of devices changed within an epoch.
    """
    earlier = resumed.record.get("processes")
    if not isinstance(earlier, int) or earlier == world_size:
        return
    # Between two epochs, samples can be divided anew.
    batches = batches_within_epoch(run.checkpoint_content)
    if batches == 0:
        return
    samples = batches * run.datamodule.batch_size * earlier
    raise UserError(
        f"--trainer.devices: the checkpoint lies within an epoch, after {samples} samples on "
        f"{earlier} devices; finish the epoch on {earlier} devices, not {world_size}"
    )


def _progress(content: Values, name: str) -> Values:
    """A part of the training's progress in a checkpoint; empty if it has none."""
    loops = mapping_at(content, "loops")
    fit_loop = mapping_at(loops, "fit_loop")
    return mapping_at(fit_loop, name)


def _processed(progress: Values) -> int:
    """How many batches or epochs are done."""
    current = mapping_at(progress, "current")
    return int(cast(int, current.get("processed", 0)))


def batches_within_epoch(content: Values) -> int:
    """The batches of an unfinished epoch that a checkpoint has trained on; 0 at its end.

    Args:
        content: of the checkpoint.
    """
    progress = _progress(content, "epoch_loop.batch_progress")
    # Lightning resets the count when the next epoch begins, not at the end of one.
    if progress.get("is_last_batch"):
        return 0
    return _processed(progress)


def nothing_to_do(resumed: Resumed, run: BuiltRun) -> str | None:
    """Why a resumed run has nothing to train or to test, as one line; `None` if it has."""
    if resumed.record.get("status") != "finished":
        return None
    # Another checkpoint is one of the middle of the run.
    if run.checkpoint is None or run.checkpoint.name != "last.ckpt":
        return None
    changed = {change.name for change in resumed.changes}
    if "run.test" in changed:
        return None
    epochs = _processed(_progress(run.checkpoint_content, "epoch_progress"))
    most = run.trainer_settings.get("max_epochs")
    reached = isinstance(most, int) and 0 <= most <= epochs
    if not reached and not changed.isdisjoint(HOW_LONG):
        return None
    return (
        f"{resumed.folder.name} is finished after {epochs} epochs; nothing is left to train "
        "(--trainer.max_epochs trains longer)"
    )
