"""Runs `kd fit`, `validate`, `test` and `predict`, from the command line and for experiments."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import save_file

from kd_lightning.errors import UserError
from kd_lightning.runs.build import BuiltRun, build_run
from kd_lightning.runs.config_errors import config_errors, one_line
from kd_lightning.runs.configs import resolve_configs, with_own_config
from kd_lightning.runs.folder import RunRecord, is_main, make_folder
from kd_lightning.runs.memory import keep_memory
from kd_lightning.runs.parsing import parse_resolved, plain_config, run_parser
from kd_lightning.runs.predictions import SavePredictions, gather_processes, join_batches
from kd_lightning.runs.quiet import quiet
from kd_lightning.runs.trainer import build_trainer
from kd_lightning.runs.wandb import log_test, wandb_logger
from kd_lightning.training import lightning_compat
from kd_lightning.training.module import TrainingModule


@dataclass
class RunResult:
    """The outcome of a run.

    Attributes:
        folder: of the run.
        metrics: the last value of each metric.
        module: with the trained weights.
    """

    folder: Path
    metrics: dict[str, float]
    module: TrainingModule


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training; the message tells how to resume."""


def launch(argv: list[str]) -> RunResult:
    """Run the arguments of a `kd` command, such as `["fit", "-c", ...]`, to the end.

    Args:
        argv: the command's name and its arguments; config files that do not exist are looked up
            among the shipped ones.

    Raises:
        UserError: for a user's mistake.
        Interrupted: after SIGINT or SIGTERM.
    """
    return launch_resolved(resolve_configs(with_own_config(argv)))


def launch_resolved(arguments: list[str]) -> RunResult:
    """Run arguments that `resolve_configs` returned; see `launch`."""
    quiet()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    command = arguments[0]
    parser = run_parser(command)
    config = parse_resolved(parser, arguments[1:])
    if config.run.keep_memory:
        # Before the data is read: memory that is freed afterwards stays.
        keep_memory()
    run = build_run(command, parser, config)
    run.check()
    return _execute_in_folder(run)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _execute_in_folder(run: BuiltRun) -> RunResult:
    """Execute a run, and record in its folder how it ended."""
    main = is_main()
    # Only the main process writes to the folder; Lightning tells the others where checkpoints are.
    folder = _make_folder(run) if main else Path(run.options.root)
    try:
        with config_errors():
            trainer = build_trainer(run, folder)
    except UserError:
        if main and not any(folder.iterdir()):
            folder.rmdir()
        raise
    record = None
    logger = None
    if main:
        config = _save_config(run, folder)
        record = RunRecord(folder, _description(run, folder))
        if run.trainer_settings.get("logger") is not False:
            logger = wandb_logger(run.options, folder, config, record.content)
    if logger is not None:
        trainer.loggers = [*trainer.loggers, logger]
    status = "failed"
    error = None
    metrics: dict[str, float] = {}
    try:
        metrics = _execute(run, trainer, folder, logger)
        status = "finished"
    except (KeyboardInterrupt, SystemExit) as stop:
        status = "interrupted"
        raise Interrupted(_how_to_resume(folder)) from stop
    except Exception as problem:
        error = one_line(str(problem))
        _explain(problem, error)
        raise
    finally:
        if record is not None:
            # A finished run that is resumed measures nothing new.
            metrics = {**record.content["metrics"], **metrics}
            teacher = run.module.provenance()
            record.write(status=status, error=error, metrics=metrics, teacher=teacher)
        if logger is not None:
            logger.experiment.finish(exit_code=int(status != "finished"))
    return RunResult(_folder_of_main(trainer, folder), metrics, run.module)


def _make_folder(run: BuiltRun) -> Path:
    """Create the run's folder, or return that of the run that is resumed."""
    if run.checkpoint is not None and run.command == "fit":
        own_folder = run.checkpoint.resolve().parent.parent
        if (own_folder / "config.yaml").is_file():
            return make_folder(own_folder, True)
    if run.options.dir:
        folder = Path(run.options.dir)
        if not folder.exists():
            return make_folder(folder, False)
        if folder.is_dir() and not any(folder.iterdir()):
            return folder
        raise UserError(
            f"--run.dir {folder} exists already; choose a new folder, or resume with --ckpt_path"
        )
    name = run.options.name
    if name is None:
        network = type(run.module.net).__name__.lower()
        name = f"{run.datamodule.spec.data}-{network}-{run.job_type}"
    if run.command != "fit":
        name = f"{name}-{run.command}"
    return make_folder(Path(run.options.root) / name, False)


def _folder_of_main(trainer: Trainer, folder: Path) -> Path:
    """The folder that the main process writes to; all processes must call this."""
    return Path(trainer.strategy.broadcast(str(folder)))


def _how_to_resume(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        return f"interrupted; resume with: kd fit --ckpt_path {last}"
    return "interrupted before the first checkpoint; start the run again"


def _explain(problem: Exception, message: str) -> None:
    """Raise a UserError instead of an error whose message does not tell what to do."""
    if "not used in producing the loss" in message:
        raise UserError(
            "some weights get no gradient from these losses; several devices then need "
            "--trainer.strategy=ddp_find_unused_parameters_true"
        ) from problem
    is_setting = isinstance(problem, MisconfigurationException)
    if is_setting or message.startswith("Early stopping conditioned on metric"):
        # Lightning's own text names the setting, and for a metric those that are logged.
        raise UserError(message) from problem


def _execute(
    run: BuiltRun, trainer: Trainer, folder: Path, logger: WandbLogger | None
) -> dict[str, float]:
    """Train or evaluate; returns the metrics.

    Args:
        run: what to execute.
        trainer: of the run.
        folder: of the run, in the main process.
        logger: of W&B, if the run is logged there.
    """
    module = run.module
    datamodule = run.datamodule
    checkpoint = str(run.checkpoint) if run.checkpoint else None
    if run.command == "predict":
        _predict(run, trainer, folder, checkpoint)
        return {}
    if run.command == "fit":
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
    elif run.command == "validate":
        trainer.validate(module, datamodule=datamodule, ckpt_path=checkpoint, verbose=False)
    else:
        trainer.test(module, datamodule=datamodule, ckpt_path=checkpoint, verbose=False)
    metrics = _measured(trainer)
    if run.command == "fit" and run.options.test != "no":
        if run.options.test == "best":
            best = _folder_of_main(trainer, folder) / "checkpoints" / "best.ckpt"
            module.load_state_dict(torch.load(best, weights_only=True)["state_dict"])
        trainer.test(module, datamodule=datamodule, verbose=False)
        metrics.update(_measured(trainer))
    stored = _stored_outputs(trainer)
    if logger is not None and stored is not None:
        log_test(logger, stored, datamodule)
    return metrics


def _measured(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _stored_outputs(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """What `SavePredictions` saved of a test, if there was one."""
    for callback in lightning_compat.callbacks(trainer):
        if isinstance(callback, SavePredictions):
            return callback.saved
    return None


def _predict(run: BuiltRun, trainer: Trainer, folder: Path, checkpoint: str | None) -> None:
    """Write the outputs on the test set, as tensors and in a form for people."""
    batches: Any = trainer.predict(run.module, datamodule=run.datamodule, ckpt_path=checkpoint)
    batches = gather_processes(trainer, batches)
    if trainer.is_global_zero:
        predictions = join_batches(batches)
        save_file(predictions, folder / "predictions.safetensors")
        run.datamodule.write_predictions(predictions, folder)


def _save_config(run: BuiltRun, folder: Path) -> dict[str, Any]:
    """Write the config, unless a resumed run has one already; returns its content."""
    # With nulls: an argument whose default is not null may have been set to null.
    content = plain_config(run.config)
    # A second run of this config needs a folder of its own.
    content["run"]["dir"] = None
    if content.get("ckpt_path") is None:
        # A null here would override a --ckpt_path that stands before this file on a command line.
        content.pop("ckpt_path", None)
    path = folder / "config.yaml"
    if not path.is_file():
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return content


def _description(run: BuiltRun, folder: Path) -> dict[str, Any]:
    """The entries of run.json that say what runs."""
    resumed = run.checkpoint is not None and run.command == "fit"
    return {
        "name": folder.name,
        "job_type": run.job_type,
        "seed": run.seed,
        "data": run.datamodule.spec.to_dict(),
        "task": run.datamodule.task.describe(),
        "teacher": run.module.provenance(),
        "resumed_from": str(run.checkpoint) if resumed else None,
    }
