"""Runs to compare, from Weights & Biases."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kd_lightning.errors import UserError
from kd_lightning.runs.wandb import has_key
from kd_lightning.values import Values

# It imports torch; without a key or a network, an error must not wait for that.
if TYPE_CHECKING:
    from kd_lightning.compare.runs import Run

TIMEOUT_S = 10
"""For each request to W&B, in seconds."""

_LOGGED_WITH_CONFIG = ("spec", "folder", "teacher", "commit", "versions", "hardware")
"""What this package's logger adds to the config of a run."""


class WandbRun(Protocol):
    """A run of W&B's API, as far as we read it."""

    id: str
    name: str
    state: str
    config: dict[str, Any]
    summary: dict[str, Any]


@dataclass
class _Answer:
    """One run as W&B returns it."""

    source: str
    name: str
    state: str
    started: str
    job_type: str
    config: dict[str, Any]
    summary: dict[str, Any]


def read_wandb(path: str, group: str | None) -> list[Run]:
    """Read the runs of a W&B project that this package logged.

    Args:
        path: ENTITY/PROJECT.
        group: read only the runs of this group; `kd reproduce` names it after the experiment.

    Raises:
        UserError: if the project cannot be read or holds no such run.
    """
    named_parts = [part for part in path.split("/") if part.strip()]
    if len(named_parts) != 2 or path.count("/") != 1:
        raise UserError(f"--wandb takes ENTITY/PROJECT, got {path!r}")
    answers = _request_runs(path, group)
    runs = []
    for answer in answers:
        if _is_logged_by_this_package(answer.config):
            runs.append(_read_run(answer))
    if not runs:
        in_group = f" in the group {group!r}" if group else ""
        raise UserError(f"W&B: {path} holds no runs of kd_lightning{in_group}")
    return runs


def _request_runs(path: str, group: str | None) -> list[_Answer]:
    """Ask W&B for the runs of a project."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "W&B is not installed; pip install wandb, or give folders of runs"
        ) from error
    # Without a key, wandb would ask for one and wait.
    if not has_key():
        raise UserError(
            "--wandb: no W&B key is known; run wandb login, or set WANDB_API_KEY"
        )
    filters = {"group": group} if group else {}
    try:
        api = wandb.Api(timeout=TIMEOUT_S)
        # Newer versions would send one request per run for its config.
        takes_lazy = "lazy" in inspect.signature(api.runs).parameters
        options: dict[str, Any] = {"lazy": False} if takes_lazy else {}
        runs = api.runs(path, filters=filters, per_page=200, **options)
        return [_as_answer(path, run) for run in runs]
    # wandb also raises the errors of the libraries below it, and ValueError.
    except Exception as error:
        text = str(error)
        if "could not find" in text.lower() or "404" in text:
            raise UserError(
                f"W&B has no project {path}, or this key may not read it"
            ) from error
        # Some errors have no text, and others have many lines.
        lines = text.strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"W&B could not be read; check the network and the key: {lines[0]}"
        ) from error


def _as_answer(path: str, run: WandbRun) -> _Answer:
    """What we read of a run."""
    return _Answer(
        source=f"{path}/{run.id} ({run.name})",
        name=run.name,
        state=str(run.state),
        # Versions of wandb differ in these attributes.
        started=str(getattr(run, "created_at", "")),
        job_type=str(getattr(run, "job_type", None)),
        config=dict(run.config),
        summary=dict(run.summary),
    )


def _is_logged_by_this_package(config: Values) -> bool:
    """Other runs of the project have no seed or no description of the data."""
    has_seed = isinstance(config.get("seed_everything"), int)
    has_spec = isinstance(config.get("spec"), dict)
    return has_seed and has_spec


def _read_run(answer: _Answer) -> Run:
    """A run that this package logged, from its config and its summary."""
    from kd_lightning.compare.runs import Run, display_name
    from kd_lightning.runs.configs import with_current_names
    from kd_lightning.runs.folder import RunFolder, numeric_metrics

    config = {}
    for name, value in answer.config.items():
        if name not in _LOGGED_WITH_CONFIG:
            # Earlier versions logged classes that have moved since.
            config[name] = with_current_names(value)
    logged_folder = answer.config.get("folder")
    folder = RunFolder(Path(logged_folder)) if logged_folder else None
    folder_name = folder.path.name if folder else answer.name
    return Run(
        source=answer.source,
        folder=folder,
        name=display_name(config, folder_name, answer.job_type),
        seed=config["seed_everything"],
        status=answer.state,
        started=answer.started,
        config=config,
        metrics=numeric_metrics(answer.summary),
        data=answer.config.get("spec") or {},
        teacher_sources=answer.config.get("teacher") or [],
    )
