"""Runs to compare, from Weights & Biases."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import UserError
from kd_lightning.runs.wandb import has_key

if TYPE_CHECKING:  # it imports torch, and without a key or a network the answer comes before
    from kd_lightning.compare.runs import Run

TIMEOUT_S = 10
"""For each question to W&B."""


def read_wandb(path: str, group: str | None) -> list[Run]:
    """All runs of a W&B project, or those of one group.

    Args:
        path: ENTITY/PROJECT.
        group: the experiment's name, where `kd reproduce` made the runs.

    Raises:
        UserError: one line, where the project cannot be read, within seconds.
    """
    if len([part for part in path.split("/") if part.strip()]) != 2 or path.count("/") != 1:
        raise UserError(f"--wandb takes ENTITY/PROJECT, got {path!r}")
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "W&B is not installed; pip install wandb, or give folders of runs"
        ) from error
    if not has_key():  # else wandb would ask for one, and wait
        raise UserError("--wandb: no W&B key is known; run wandb login, or set WANDB_API_KEY")
    try:
        api = wandb.Api(timeout=TIMEOUT_S)
        whole: dict[str, Any] = (
            {"lazy": False} if "lazy" in inspect.signature(api.runs).parameters else {}
        )  # one question for all
        listed = api.runs(path, filters={"group": group} if group else {}, per_page=200, **whole)
        answers = [(run, dict(run.config), dict(run.summary)) for run in listed]
    except (
        Exception
    ) as error:  # wandb raises whatever its layers do: its own, requests', ValueError
        if "could not find" in str(error).lower() or "404" in str(error):
            raise UserError(f"W&B has no project {path}, or this key may not read it") from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"W&B could not be read; check the network and the key: {lines[0]}"
        ) from error
    found = [_run(path, *answer) for answer in answers if _is_ours(answer[1])]
    if not found:
        raise UserError(
            f"W&B: {path} holds no runs of kd_lightning"
            + (f" in the group {group!r}" if group else "")
        )
    return found


def _is_ours(config: Mapping[str, Any]) -> bool:
    """Whether this package logged it: then there are a seed and the data's spec."""
    return isinstance(config.get("seed_everything"), int) and isinstance(config.get("spec"), dict)


def _run(path: str, answer: Any, config: dict[str, Any], summary: Mapping[str, Any]) -> Run:
    from kd_lightning.compare.runs import Run, numbers, short_name

    own = {
        name: config.pop(name, None)
        for name in ("spec", "folder", "teacher", "commit", "versions", "hardware")
    }
    folder = Path(own["folder"]) if own["folder"] else None
    return Run(
        f"{path}/{answer.id} ({answer.name})",
        folder,
        short_name(
            config, folder.name if folder else answer.name, str(getattr(answer, "job_type", None))
        ),
        config["seed_everything"],
        str(answer.state),
        str(getattr(answer, "created_at", "")),
        config,
        numbers(summary),
        own["spec"] or {},
        own["teacher"] or [],
    )
