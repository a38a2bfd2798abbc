"""What the modules share: a network, a dict of losses, the lean training step, evaluation, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from kd_lightning.data.blank import blank_inputs
from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_network
from kd_lightning.losses.base import DistillLoss, Probe
from kd_lightning.metrics import EvaluationMetrics
from kd_lightning.randomness import reseed, run_seed
from kd_lightning.spec import check_vocabulary
from kd_lightning.training.checkpointed import CheckpointedModule
from kd_lightning.training.lean import known_signature
from kd_lightning.training.means import EpochMeans
from kd_lightning.training.optimizers import OptimizerFactory, SchedulerFactory, optimize
from kd_lightning.types import Batch, Inputs, Output
from kd_lightning.weights import KEY, load_weights, network_weights, read_file


class BaseModule(CheckpointedModule):
    """Trains one network with a dict of losses; knows no loss by name.

    Subclasses hand over the network under the attribute named by `role`, which is also its prefix in checkpoints.
    """

    def __init__(
        self,
        network: nn.Module,
        losses: Mapping[str, DistillLoss],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        layers: Mapping[str, str] | None,
        init_from: str | None,
        spec: Mapping[str, Any] | None,
        channels_last: bool,
    ) -> None:
        super().__init__()
        if not losses:
            raise UserError(
                "model.losses is empty: name at least one loss; `kd list methods` shows them"
            )
        setattr(self, self.role, network)
        self.losses = nn.ModuleDict(losses)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.layers, self.init_from = dict(layers or {}), init_from
        self.spec: dict[str, Any] | None = dict(spec) if spec else None
        self.channels_last = channels_last
        self.metrics: EvaluationMetrics | None = None
        self.taps: Taps | None = None
        self._learns = False
        self._terms: list[tuple[DistillLoss, float]] = []
        self._rank = 0
        self._draws: tuple[int | str, ...] = ()
        self._constrained = [
            m for m in network.modules() if callable(getattr(m, "after_step", None))
        ]

    def keep_hyperparameters(self) -> None:
        """Keep the config that the command line built this module from, so that a checkpoint can build it again.

        Modules made in Python are not kept: pickled, they would make the checkpoint unreadable without running code.
        """
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters(logger=False)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits `(B, K)`; at temperature 1, as in deployment."""
        return run_network(self.net, inputs).logits

    # -- before training ----------------------------------------------------------------------------------------------

    def attach(self, datamodule: Any, stage: str = "fit") -> None:
        """Make the module ready for this data: check it, start from other weights, place taps, build adapters. Idempotent.

        Raises:
            UserError: one line, before anything is trained, where something does not fit.
        """
        if not self._attached:
            self.spec = dict(datamodule.spec)
            self.metrics = EvaluationMetrics(self.spec["num_classes"])
        if stage == "fit" and not self._losses_built:
            if self.init_from is not None:
                content = read_file(self.init_from, "init_from")
                theirs, what = (content.get(KEY) or {}).get("spec"), f"init_from {self.init_from}"
                check_vocabulary(what, theirs, self.spec or {}, (self.spec or {}).get("vocabulary"))
                weights = datamodule.adapt_weights(self.net, network_weights(content), theirs, what)
                load_weights(self.net, weights, what)
            self._build_losses(datamodule)
        if not self._attached:
            self._check_output()
            if self.channels_last:
                self.to(memory_format=torch.channels_last)
        self._attached = True

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if (datamodule := getattr(self.trainer, "datamodule", None)) is None:
            raise UserError("give the Trainer a datamodule: trainer.fit(module, datamodule=...)")
        self.attach(datamodule, stage)

    def _blank_batch(self) -> Batch:
        assert self.spec is not None
        teacher = (
            blank_inputs(self.spec, 2, "teacher_inputs") if "teacher_inputs" in self.spec else None
        )
        target, index = torch.zeros(2, dtype=torch.int64), torch.arange(2)
        return Batch(blank_inputs(self.spec, 2), target, index, teacher_inputs=teacher)

    def _run_blank(self) -> Output:
        training = self.net.training
        self.net.eval()
        try:
            with torch.no_grad():
                return run_network(self.net, self._blank_batch().inputs, self.taps)
        except UserError:
            raise
        except Exception as error:
            shape = (self.spec or {})["input_shape"]
            name = type(self.net).__name__
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{name} cannot read inputs of shape {shape}: {reason}") from error
        finally:
            self.net.train(training)

    def _check_output(self) -> None:
        assert self.spec is not None
        shape, wanted = tuple(self._run_blank().logits.shape), (2, self.spec["num_classes"])
        if shape != wanted:
            raise UserError(
                f"{type(self.net).__name__} gives outputs of shape {list(shape[1:])} a sample; "
                f"the data {self.spec['data']} has {wanted[1]} classes"
            )

    def _teacher_probe(self, datamodule: Any, roles: set[str]) -> Probe | None:
        return None

    def _build_losses(self, datamodule: Any) -> None:
        losses = [cast(DistillLoss, loss) for loss in self.losses.values()]
        teacher = self._teacher_probe(
            datamodule, set().union(*(loss.teacher_roles for loss in losses))
        )
        if roles := set().union(*(loss.student_roles for loss in losses)):
            self.taps = Taps(self.net, self.layers, roles)
        student = Probe(self._run_blank(), self.taps.modules if self.taps else {}, self.spec or {})
        self._learns = teacher is not None
        for name, loss in zip(self.losses, losses, strict=True):
            if loss.uses_teacher and teacher is None:
                raise UserError(
                    f"the loss {name!r} needs a teacher; use DistillationModule and model.teacher"
                )
            loss.build(student, teacher)
        self._losses_built = True
        if self._pending_losses:
            self.losses.load_state_dict({**self.losses.state_dict(), **self._pending_losses})
            self._pending_losses = {}

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.channels_last and isinstance(batch.inputs, Tensor) and batch.inputs.ndim == 4:
            batch.inputs = batch.inputs.contiguous(memory_format=torch.channels_last)
        return batch

    # -- training -----------------------------------------------------------------------------------------------------

    def teach(self, batch: Batch) -> Output | None:
        """What the teacher says of a batch; None where there is none."""
        return None

    def objective(self, batch: Batch) -> Tensor:
        """The weighted total of all losses; its parts are kept for the epoch's means."""
        # The teacher goes first: what its layers need is free again before the student's activations fill the memory.
        teacher = self.teach(batch) if self._learns else None
        student = run_network(self.net, batch.inputs, self.taps)
        terms = [loss(student, teacher, batch) for loss, _ in self._terms]
        samples: Tensor | float = len(batch)
        if self._world_size > 1:
            samples, terms = self._joined(batch, terms)
        first, *others = (
            weight * term for (_, weight), term in zip(self._terms, terms, strict=True)
        )
        total: Tensor = sum(others, first)
        self._means.add(samples, total, terms)
        return total

    def _joined(self, batch: Batch, terms: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Each process's losses, scaled so that their mean over processes, and that of the gradients, is the joined batch's.

        Returns:
            The samples of the joined batch, divided by the number of processes; and the scaled losses.
        """
        own = [loss.counted(batch) for loss, _ in self._terms]
        counts = torch.stack([batch.target.new_tensor(0 if batch.ghost else len(batch)), *own])
        total = counts.clone()
        torch.distributed.all_reduce(total)
        scales = counts[1:] * self._world_size / total[1:].clamp(min=1)
        return total[0] / self._world_size, [
            term * scale for term, scale in zip(terms, scales, strict=True)
        ]

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        losses = [cast(DistillLoss, loss) for loss in self.losses.values()]
        self._terms = [(loss, loss.weight_at(self.current_epoch)) for loss in losses]
        self._means = EpochMeans()
        self._world_size, self._rank = self.trainer.world_size, self.global_rank
        self._draws = (run_seed(), "step", self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout is a function of (seed, epoch, batch, rank), so that a resumed run draws what the uninterrupted one drew.
        reseed(self.device, *self._draws, batch_idx, self._rank)

    @known_signature
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.objective(batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for module in self._constrained:
            module.after_step()  # type: ignore[operator]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (
            len(self._means) >= cast(Any, self.trainer).log_every_n_steps
            or self.trainer.is_last_batch
        ):
            self._close_window()

    def on_train_epoch_end(self) -> None:
        self._close_window()  # max_steps may have cut the epoch short
        if not all(bool(p.isfinite().all()) for p in self.net.parameters()):
            raise UserError(
                f"weights became infinite or NaN in epoch {self.current_epoch}; lower the learning rate"
            )
        if (means := self._means.compute(self.device, self._world_size > 1)) is not None:
            names = ("train_loss", *(f"train_loss_{name}" for name in self.losses))
            self.log_dict(dict(zip(names, means, strict=True)))
        self._means = EpochMeans()
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [p for m in (self.net, self.losses) for p in m.parameters() if p.requires_grad]
        return optimize(
            self.optimizer,
            self.scheduler,
            parameters,
            lambda: int(self.trainer.estimated_stepping_batches),
        )

    def check_optimizer(self) -> None:
        """UserError where the optimizer or the scheduler refuses its arguments, before anything is trained."""
        optimize(self.optimizer, self.scheduler, [nn.Parameter(torch.zeros(1))], lambda: 100)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        if self.metrics is not None:
            self.metrics.reset()

    on_test_epoch_start = on_validation_epoch_start

    def _evaluate(self, batch: Batch) -> Output:
        assert self.metrics is not None
        student = run_network(self.net, batch.inputs)
        if not batch.ghost:
            self.metrics.update(student, self.teach(batch), batch.target)
        return student

    def _report(self, stage: str) -> None:
        assert self.metrics is not None
        values = {
            f"{stage}_{name}": value.float() for name, value in self.metrics.compute().items()
        }
        self.log_dict(values)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        said = {
            "logits": self._evaluate(batch).logits,
            "index": batch.index,
            "target": batch.target,
        }
        return {name: tensor[:0] for name, tensor in said.items()} if batch.ghost else said

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        said = {"logits": run_network(self.net, batch.inputs).logits, "index": batch.index}
        return {name: tensor[:0] for name, tensor in said.items()} if batch.ghost else said
