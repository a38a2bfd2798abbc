"""Runs `kd fit`, `validate`, `test` and `predict`, from the command line and for experiments."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer

from kd_lightning.errors import UserError, printable
from kd_lightning.runs.build import BuiltRun, build_run
from kd_lightning.runs.config_errors import config_errors, one_line
from kd_lightning.runs.configs import resolve_configs, with_own_config
from kd_lightning.runs.csv_logger import EpochCSVLogger
from kd_lightning.runs.folder import RunFolder, is_main, make_folder
from kd_lightning.runs.lock import locked
from kd_lightning.runs.memory import keep_memory
from kd_lightning.runs.parsing import parse_resolved, run_parser
from kd_lightning.runs.predictions import (
    SavePredictions,
    gather_processes,
    join_batches,
    save_tensors,
)
from kd_lightning.runs.problems import explain
from kd_lightning.runs.quiet import quiet
from kd_lightning.runs.resume import (
    Resumed,
    check_processes,
    check_resume,
    folder_of_checkpoint,
    nothing_to_do,
)
from kd_lightning.runs.session import Session, add_callback
from kd_lightning.runs.session_callback import EPOCH_ROW, SessionCallback
from kd_lightning.runs.trainer import build_trainer
from kd_lightning.runs.wandb import check_wandb, log_test
from kd_lightning.training import lightning_compat
from kd_lightning.training.first_report import Content, FirstBatchReport
from kd_lightning.training.module import TrainingModule
from kd_lightning.weights import load_weights, network_weights


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
    # Python lets only the main thread set handlers.
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
    """Treat SIGTERM, with which batch systems end a job, like Ctrl-C."""
    raise KeyboardInterrupt


def _execute_in_folder(run: BuiltRun) -> RunResult:
    """Execute a run in its folder, which no other process may use meanwhile."""
    # Everything that can be refused is refused before there is a folder.
    check_wandb(run.options)
    resumed = check_resume(run)
    if resumed is not None:
        reason = nothing_to_do(resumed, run)
        if reason is not None:
            return _unchanged(run, resumed, reason)
    if not is_main():
        # Only the main process writes to the folder; Lightning tells the others where checkpoints
        # are.
        return _execute_and_record(run, Path(run.options.root), resumed, None)
    folder = _make_folder(run)
    try:
        with locked(folder):
            return _execute_and_record(
                run, folder, resumed, Session(run, folder, resumed)
            )
    except UserError:
        # A refused run leaves no folder behind.
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _unchanged(run: BuiltRun, resumed: Resumed, reason: str) -> RunResult:
    """The result of a finished run that has nothing left to do."""
    if is_main():
        print(printable(reason))
    # The caller expects a trained module, as after any other run.
    weights = network_weights(run.checkpoint_content)
    load_weights(run.module.net, weights, f"--ckpt_path {run.checkpoint}")
    return RunResult(resumed.folder, RunFolder(resumed.folder).metrics, run.module)


def _execute_and_record(
    run: BuiltRun,
    folder: Path,
    resumed: Resumed | None,
    session: Session | None,
) -> RunResult:
    """Execute a run, and record in its folder how it ended.

    Args:
        run: what to execute.
        folder: of the run.
        resumed: the run as it was, if it is resumed.
        session: writes the files of the run; `None` except in the main process.
    """
    if session is not None and run.command == "fit":
        add_callback(run.trainer_settings, SessionCallback(session))
    run.module.check_steps = run.options.check_steps
    with config_errors():
        trainer = build_trainer(run, folder)
    if session is not None:
        run.module.capture_folder = folder
        _store_report(trainer, session)
    # Only the Trainer knows the number of processes.
    if resumed is not None:
        check_processes(resumed, run, trainer.world_size)
        _complete_last_row(run, trainer)
    # Whatever ends the run, run.json tells how.
    status = "failed"
    error = None
    metrics: dict[str, float] = {}
    try:
        if session is not None and resumed is None:
            session.start(trainer)
        metrics = _execute(run, trainer, folder, session)
        if session is not None:
            session.finish("finished", None, metrics)
        status = "finished"
    except (KeyboardInterrupt, SystemExit) as stop:
        status = "interrupted"
        raise Interrupted(_how_to_resume(folder)) from stop
    except Exception as problem:
        explained = explain(problem, folder, session is not None)
        error = one_line(str(explained or problem))
        if explained is not None:
            raise explained from problem
        raise
    finally:
        if session is not None:
            if status != "finished":
                session.finish(status, error, metrics)
            session.close(status)
    return RunResult(_folder_of_main(trainer, folder), metrics, run.module)


def _complete_last_row(run: BuiltRun, trainer: Trainer) -> None:
    """Add to metrics.csv what a kill after the last checkpoint kept from it."""
    row = run.checkpoint_content.get(EPOCH_ROW)
    if not isinstance(row, dict) or "epoch" not in row:
        return
    for logger in trainer.loggers:
        if isinstance(logger, EpochCSVLogger):
            logger.complete(row)


def _store_report(trainer: Trainer, session: Session) -> None:
    """Let the first-batch report be written to run.json as soon as it is made."""

    def store(content: Content) -> None:
        if session.record is not None:
            session.record.write(report=content)

    for callback in lightning_compat.callbacks(trainer):
        if isinstance(callback, FirstBatchReport):
            callback.store = store


def _make_folder(run: BuiltRun) -> Path:
    """Create the run's folder, or return that of the run that is resumed."""
    own_folder = folder_of_checkpoint(run)
    if own_folder is not None:
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
    # A name that says what was trained on what.
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
    """What an interrupted run prints."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        return f"interrupted; resume with: kd fit --ckpt_path {last}"
    return "interrupted before the first checkpoint; start the run again"


def _execute(
    run: BuiltRun,
    trainer: Trainer,
    folder: Path,
    session: Session | None,
) -> dict[str, float]:
    """Train or evaluate; returns the metrics.

    Args:
        run: what to execute.
        trainer: of the run.
        folder: of the run, in the main process.
        session: writes the files of the run, in the main process.
    """
    module = run.module
    datamodule = run.datamodule
    checkpoint = str(run.checkpoint) if run.checkpoint else None
    # A prediction measures nothing.
    if run.command == "predict":
        _predict(run, trainer, folder, checkpoint)
        return {}
    if run.command == "fit":
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
        if session is not None:
            # A resumed run may have nothing left but its test.
            session.start(trainer)
    elif run.command == "validate":
        trainer.validate(
            module, datamodule=datamodule, ckpt_path=checkpoint, verbose=False
        )
    else:
        trainer.test(module, datamodule=datamodule, ckpt_path=checkpoint, verbose=False)
    # The test replaces the Trainer's metrics by its own.
    metrics = _measured(trainer)
    if run.command == "fit" and run.options.test != "no":
        if run.options.test == "best":
            best = _folder_of_main(trainer, folder) / "checkpoints" / "best.ckpt"
            module.load_state_dict(torch.load(best, weights_only=True)["state_dict"])
        trainer.test(module, datamodule=datamodule, verbose=False)
        metrics.update(_measured(trainer))
    stored = _stored_outputs(trainer)
    if session is not None and session.logger is not None and stored is not None:
        log_test(session.logger, stored, datamodule)
    return metrics


def _measured(trainer: Trainer) -> dict[str, float]:
    """The last value of each metric that was logged."""
    metrics = {}
    for name, value in trainer.callback_metrics.items():
        metrics[name] = float(value)
    return metrics


def _stored_outputs(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """What `SavePredictions` saved of a test, if there was one."""
    for callback in lightning_compat.callbacks(trainer):
        if isinstance(callback, SavePredictions):
            return callback.saved
    return None


def _predict(
    run: BuiltRun,
    trainer: Trainer,
    folder: Path,
    checkpoint: str | None,
) -> None:
    """Write the outputs on the test set, as tensors and in a form for people."""
    batches: Any = trainer.predict(
        run.module, datamodule=run.datamodule, ckpt_path=checkpoint
    )
    batches = gather_processes(trainer, batches)
    if trainer.is_global_zero:
        predictions = join_batches(batches)
        save_tensors(predictions, folder / "predictions.safetensors")
        run.datamodule.write_predictions(predictions, folder)
