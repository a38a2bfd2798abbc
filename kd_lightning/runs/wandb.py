"""Logs to Weights & Biases.

Enabled by default: online if an API key is found, otherwise offline. Skipped if wandb is not
installed, and if it is off or disabled. A resumed run continues its run in W&B.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import urlparse

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError, printable
from kd_lightning.runs.options import RunOptions
from kd_lightning.values import Values, mapping_at

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from torch import Tensor
    from wandb import Image, Run, Table

    from kd_lightning.tasks.base import Mistake

MODES = ("online", "offline", "disabled")
"""What WANDB_MODE may be; `disabled` is our `off`."""

_OLD_MODES = {"run": "online", "dryrun": "offline"}
"""Names that W&B still accepts."""

MISTAKES = 25
"""How many of the most confident mistakes of a test are shown."""


class LoggedRecord(TypedDict):
    """The entries of run.json that W&B shows.

    Attributes:
        wandb: the identity of the run; see `run_identity`.
        job_type: the kind of run.
        data: the spec.
        teacher: where the teacher's knowledge comes from.
        commit: of the source; `None` if it is unknown.
        versions: of packages.
        hardware: of the machine.
    """

    wandb: dict[str, str | None]
    job_type: str
    data: Values
    teacher: Sequence[Values]
    commit: str | None
    versions: dict[str, str]
    hardware: Values


def choose_mode(mode: str) -> str:
    """The mode of W&B: "online", "offline" or "disabled".

    Args:
        mode: `--run.wandb`; for "auto", the variable WANDB_MODE decides, then whether there is an
            API key.

    Raises:
        UserError: if WANDB_MODE is none of these, or if an online run has no API key.
    """
    chosen = "disabled" if mode == "off" else mode
    if mode == "auto":
        named = os.environ.get("WANDB_MODE")
        if not named:
            return "online" if has_key() else "offline"
        chosen = _OLD_MODES.get(named, named)
        if chosen not in MODES:
            raise UserError(f"WANDB_MODE is {named!r}; valid modes: {', '.join(MODES)}")
    if chosen == "online" and not has_key():
        # wandb itself would ask for a key and wait.
        raise UserError(
            "W&B: an online run needs an API key; run wandb login, set WANDB_API_KEY, or use "
            "--run.wandb=offline"
        )
    return chosen


def has_key() -> bool:
    """Whether there is an API key in the environment or in the file that `wandb login` writes.

    Asking wandb itself could prompt the user or use the network.
    """
    named = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if any(os.environ.get(name) for name in named):
        return True
    return _key_in_netrc()


def _key_in_netrc() -> bool:
    """Whether `wandb login` has written a key for one of the hosts."""
    try:
        entries = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(entries.authenticators(host) is not None for host in _hosts())


def _hosts() -> set[str]:
    """The hosts that a key may be stored for, with and without a port."""
    base_url = os.environ.get("WANDB_BASE_URL")
    urls = [base_url or "https://api.wandb.ai"]
    if not base_url:
        with contextlib.suppress(ImportError):
            import wandb

            # Newer versions use another host, and accept a key of the old one.
            urls.append(wandb.Settings().base_url)
    hosts: set[str] = set()
    for url in urls:
        parts = urlparse(url)
        hosts.update(host for host in (parts.netloc, parts.hostname) if host)
    return hosts


def is_installed() -> bool:
    """Whether wandb can be imported."""
    try:
        import wandb  # noqa: F401
    except ImportError:
        return False
    return True


def check_wandb(options: RunOptions) -> None:
    """Find mistakes in the mode before a run's folder is made.

    Raises:
        UserError: see `choose_mode`.
    """
    if options.wandb != "off" and is_installed():
        choose_mode(options.wandb)


def announce(mode: str, folder: Path, asked: bool) -> None:
    """Print where the run goes, unless the user has never asked for W&B.

    Args:
        mode: "online" or "offline".
        folder: of the run.
        asked: whether the user named W&B on this command line.
    """
    if mode == "online":
        print("W&B: online")
    elif asked or os.environ.get("WANDB_MODE"):
        later = f"wandb sync {folder}/wandb/offline-run-*"
        print(printable(f"W&B: {mode}; send it later with: {later}"))


def wandb_logger(
    options: RunOptions,
    folder: Path,
    config: Values,
    record: LoggedRecord,
) -> WandbLogger | None:
    """Start a run in W&B, or continue the one of a resumed run.

    Args:
        options: of the run.
        folder: of the run.
        config: of the run, in plain values.
        record: the content of run.json; its entry `wandb` names the run that continues.

    Returns:
        The logger; None if W&B is off or not installed.

    Raises:
        UserError: if W&B cannot be reached or refuses the run.
    """
    if options.wandb == "off":
        return None
    if not is_installed():
        print("W&B is not installed: metrics go to metrics.csv only")
        return None
    mode = choose_mode(options.wandb)
    if mode == "disabled":
        return None
    from lightning.pytorch.loggers import WandbLogger

    announce(mode, folder, asked=options.wandb != "auto")
    return WandbLogger(experiment=_start_run(options, mode, folder, config, record))


def _start_run(
    options: RunOptions,
    mode: str,
    folder: Path,
    config: Values,
    record: LoggedRecord,
) -> Run:
    """Start the run in W&B; see `wandb_logger`."""
    import wandb

    # An experiment names folders by hashes; its runs then have a name of their own.
    name = options.name if options.dir else None
    # The config has a key `data` of its own, so the record's becomes `spec`.
    logged = {
        **config,
        "spec": record["data"],
        "folder": str(folder.resolve()),
        "teacher": record["teacher"],
        "commit": record["commit"],
        "versions": record["versions"],
        "hardware": record["hardware"],
    }
    with _one_line_errors("use --run.wandb=offline"):
        return wandb.init(
            id=record["wandb"]["id"],
            resume="allow",
            name=name or folder.name,
            dir=str(folder.resolve()),
            project=options.project,
            entity=options.entity,
            group=options.group,
            job_type=record["job_type"],
            tags=options.tags,
            mode=mode,  # type: ignore[arg-type,unused-ignore]
            config=logged,
            settings=wandb.Settings(silent=True, console="off"),
        )


def continue_run(identity: dict[str, str | None], mode: str, folder: Path) -> Run:
    """Open a run in W&B again, to add to it what was made after the training.

    Args:
        identity: the entry `wandb` of its run.json.
        mode: "online" or "offline".
        folder: of the run.

    Raises:
        UserError: if W&B cannot be reached or refuses the run.
    """
    import wandb

    with _one_line_errors("set WANDB_MODE=offline"):
        return wandb.init(
            id=identity["id"],
            resume="allow",
            dir=str(folder.resolve()),
            project=identity["project"],
            entity=identity["entity"],
            mode=mode,  # type: ignore[arg-type,unused-ignore]
            settings=wandb.Settings(silent=True, console="off"),
        )


@contextlib.contextmanager
def _one_line_errors(alternative: str) -> Iterator[None]:
    """Turn any error of W&B into one line; wandb also raises those of the libraries below it."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"W&B could not start the run ({lines[0]}); check the network and the key, or "
            f"{alternative}"
        ) from error


def run_identity(earlier: Values, options: RunOptions) -> dict[str, str | None]:
    """The identity of a run in W&B, for run.json: that of the resumed run, or a new one.

    Args:
        earlier: the content of run.json before; empty for a new run.
        options: of the run.
    """
    stored = mapping_at(earlier, "wandb")
    place = {"project": options.project, "entity": options.entity}
    # An id belongs to a project; in another one the run starts anew.
    stored_place = {name: stored.get(name) for name in place}
    if stored.get("id") and stored_place == place:
        return {"id": str(stored["id"]), **place}
    # Not from a random generator that training also uses.
    return {"id": uuid.uuid4().hex[:8], **place}


def log_test(
    logger: WandbLogger,
    stored: dict[str, Tensor],
    datamodule: DataModule,
) -> None:
    """Log the confusion matrix, and the most confident mistakes as images or texts.

    Args:
        logger: a WandbLogger.
        stored: what the task's `test_outputs` returned for all samples: tensors with the samples
            first, always with `index`.
        datamodule: of the run.
    """
    import wandb

    task = datamodule.task
    spec = datamodule.spec
    # Regression, for example, has no confusion matrix.
    logged: dict[str, Any] = {}
    confusion = task.confusion(stored)
    if confusion is not None:
        labels, guesses = confusion
        logged["test_confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=labels.tolist(),
            preds=guesses.tolist(),
            class_names=list(spec.classes),
        )
    mistakes = _shown_mistakes(task.mistakes(stored, spec, MISTAKES), datamodule)
    if mistakes is not None:
        logged["test_mistakes"] = mistakes
    if logged:
        logger.experiment.log(logged)


def _shown_mistakes(
    mistakes: Sequence[Mistake], datamodule: DataModule
) -> list[Image] | Table | None:
    """Mistakes as images or as a table of texts; `None` for data that is neither."""
    import torch
    import wandb

    rows = [mistake.index for mistake in mistakes]
    index = torch.tensor(rows, dtype=torch.int64)
    images = datamodule.images_for_display(index)
    if images is not None:
        shown = []
        for image, mistake in zip(images, mistakes, strict=True):
            # W&B expects the channels last, and gray images without any.
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            shown.append(wandb.Image(pixels, caption=mistake.caption))
        return shown
    texts = datamodule.texts_for_display(index)
    if texts is None:
        return None
    cells = []
    for text, mistake in zip(texts, mistakes, strict=True):
        cells.append([mistake.caption, text])
    return wandb.Table(["guess", "text"], cells)
