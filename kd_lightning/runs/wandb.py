"""Weights & Biases: on by default, online where a key is known, offline otherwise; absent, the run goes on without."""

from __future__ import annotations

import contextlib
import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from kd_lightning.data.datamodule import DataModule
from kd_lightning.runs.options import RunOptions

if TYPE_CHECKING:
    from torch import Tensor

MISTAKES = 25
"""How many of the most confident mistakes are shown as images."""


def choose_mode(wanted: str) -> str:
    """ "online" or "offline"; "auto" asks WANDB_MODE, then whether a key is known."""
    if wanted != "auto":
        return wanted
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether a key is in the environment, or where `wandb login` leaves it; wandb itself would ask the user or the network."""
    return bool(os.environ.get("WANDB_API_KEY")) or _key_in_netrc()


def _key_in_netrc() -> bool:
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(host) is not None for host in _hosts())


def _hosts() -> set[str]:
    """The names under which a key may be kept, with and without a port."""
    if url := os.environ.get("WANDB_BASE_URL"):
        urls = [url]
    else:
        urls = ["https://api.wandb.ai"]
        with contextlib.suppress(ImportError):
            import wandb

            urls.append(
                wandb.Settings().base_url
            )  # newer versions have moved, and accept a key of the old host
    return {
        host for parts in map(urlparse, urls) for host in (parts.netloc, parts.hostname) if host
    }


def wandb_logger(
    options: RunOptions, folder: Path, config: dict[str, Any], record: dict[str, Any]
) -> Any:
    """A WandbLogger with config, group, job type and tags; None where it is off or not installed."""
    if options.wandb == "off":
        return None
    try:
        import wandb
        from lightning.pytorch.loggers import WandbLogger
    except ImportError:
        print("W&B is not installed: metrics go to metrics.csv alone")
        return None
    mode = choose_mode(options.wandb)
    print(
        f"W&B: {mode}"
        + (
            ""
            if mode == "online"
            else f"; send it later with: wandb sync {folder}/wandb/offline-run-*"
        )
    )
    run = wandb.init(
        name=(options.name if options.dir else None)
        or folder.name,  # an experiment names folders by hashes
        dir=str(folder.resolve()),
        project=options.project,
        entity=options.entity,
        group=options.group,
        job_type=record["job_type"],
        tags=options.tags,
        mode=mode,  # type: ignore[arg-type,unused-ignore]
        config={
            **config,  # which has a key `data` of its own
            "spec": record["data"],
            "folder": str(folder.resolve()),
            **{name: record[name] for name in ("teacher", "commit", "versions", "hardware")},
        },
        settings=wandb.Settings(silent=True, console="off"),
    )
    return WandbLogger(experiment=run)


def log_test(logger: Any, stored: dict[str, Tensor], datamodule: DataModule) -> None:
    """Log the confusion matrix, and the most confident mistakes as images or texts.

    Args:
        logger: a WandbLogger.
        stored: what the task's `test_outputs` returned for all samples.
        datamodule: of the run.
    """
    import torch
    import wandb

    task = datamodule.task
    spec = datamodule.spec
    logged: dict[str, Any] = {}
    confusion = task.confusion(stored)
    if confusion is not None:
        labels, guesses = confusion
        logged["test_confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=labels.tolist(), preds=guesses.tolist(), class_names=list(spec.classes)
        )
    mistakes = task.mistakes(stored, spec, MISTAKES)
    index = torch.tensor([mistake.index for mistake in mistakes], dtype=torch.int64)
    images = datamodule.images_for_display(index)
    texts = datamodule.texts_for_display(index)
    if images is not None:
        shown = []
        for image, mistake in zip(images, mistakes, strict=True):
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            shown.append(wandb.Image(pixels, caption=mistake.caption))
        logged["test_mistakes"] = shown
    elif texts is not None:
        rows = []
        for text, mistake in zip(texts, mistakes, strict=True):
            rows.append([mistake.caption, text])
        logged["test_mistakes"] = wandb.Table(["guess", "text"], rows)
    if logged:
        logger.experiment.log(logged)
