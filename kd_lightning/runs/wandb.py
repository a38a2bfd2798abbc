"""Weights & Biases: on by default, online where a key is known, offline otherwise; absent, the run goes on without."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from kd_lightning.runs.options import RunOptions

MISTAKES = 25
"""How many of the most confident mistakes are shown as images."""


def choose_mode(wanted: str) -> str:
    """ "online" or "offline"; "auto" asks WANDB_MODE, then whether a key is known."""
    if wanted != "auto":
        return wanted
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _key_in_netrc() else "offline"


def _key_in_netrc() -> bool:
    """Whether `wandb login` left a key; asking wandb itself is deprecated, or asks the network."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(options: RunOptions, folder: Path, config: dict[str, Any], record: dict[str, Any]) -> Any:
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
    print(f"W&B: {mode}" + ("" if mode == "online" else f"; send it later with: wandb sync {folder}/wandb/offline-run-*"))
    run = wandb.init(
        name=folder.name,
        dir=str(folder.resolve()),
        project=options.project,
        entity=options.entity,
        group=options.group,
        job_type=record["job_type"],
        tags=options.tags,
        mode=mode,  # type: ignore[arg-type,unused-ignore]
        config={**config, **{name: record[name] for name in ("data", "teacher", "commit", "versions", "hardware")}},
        settings=wandb.Settings(silent=True, console="off"),
    )
    return WandbLogger(experiment=run)


def log_test(logger: Any, tested: dict[str, Tensor], datamodule: Any) -> None:
    """The confusion matrix, and the most confident mistakes as images."""
    import wandb

    known = tested["target"] >= 0
    probs = tested["logits"][known].float().softmax(-1)
    target, index, classes = tested["target"][known], tested["index"][known], datamodule.spec["classes"]
    matrix = wandb.plot.confusion_matrix(y_true=target.tolist(), preds=probs.argmax(-1).tolist(), class_names=list(classes))
    confidence, guess = probs.max(-1)
    wrong = torch.nonzero(guess != target).flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
    images = datamodule.raw("test").images[index[worst]] if hasattr(datamodule, "raw") else []
    logger.experiment.log(
        {
            "test_confusion_matrix": matrix,
            "test_mistakes": [
                wandb.Image(
                    image.permute(1, 2, 0).squeeze(-1).numpy(),
                    caption=f"{classes[int(guess[i])]} ({confidence[i]:.2f}), is {classes[int(target[i])]}",
                )
                for image, i in zip(images, worst, strict=False)
            ],
        }
    )
