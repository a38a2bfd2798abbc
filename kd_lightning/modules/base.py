"""What the modules share: a network, a dict of losses, the lean training step, evaluation, and checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.checkpoints import KEY, load_weights, network_weights, read_file, specialist_weights
from kd_lightning.data.blank import blank_inputs
from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_network
from kd_lightning.losses.base import DistillLoss, Probe
from kd_lightning.metrics import EvaluationMetrics
from kd_lightning.randomness import reseed, run_seed
from kd_lightning.types import Batch, Inputs, Output

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def default_optimizer(parameters: Iterable[Any]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


def takes_total_steps(factory: Any) -> bool:
    """Whether a scheduler is to be told the number of steps, which only the trainer knows; it then moves every step."""
    parts = [factory, factory.func, *factory.args] if isinstance(factory, partial) else [factory]
    told = isinstance(factory, partial) and (factory.keywords.get("total_steps") or factory.keywords.get("epochs"))
    classes = [part for part in parts if isinstance(part, type)]
    return not told and any("total_steps" in inspect.signature(c).parameters for c in classes)


def plain(value: Any) -> Any:
    """Builtins alone, so that a checkpoint loads without running code."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


class BaseModule(pl.LightningModule):
    """Trains one network with a dict of losses; knows no loss by name.

    Subclasses hand over the network under the attribute named by `role`, which is also its prefix in checkpoints.
    """

    role: ClassVar[str]

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
            raise UserError("model.losses is empty: name at least one loss; `kd list methods` shows them")
        setattr(self, self.role, network)
        self.losses = nn.ModuleDict(losses)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.layers, self.init_from = dict(layers or {}), init_from
        self.spec: dict[str, Any] | None = dict(spec) if spec else None
        self.channels_last = channels_last
        self.metrics: EvaluationMetrics | None = None
        self.taps: Taps | None = None
        self._attached = self._losses_built = self._learns = False
        self._pending_losses: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._world_size = 1
        self._window: list[tuple[Tensor | float, list[Tensor]]] = []
        self._epoch_sums: Tensor | None = None
        self._constrained = [m for m in network.modules() if callable(getattr(m, "after_step", None))]
        self.register_load_state_dict_pre_hook(self._keep_loss_state)  # type: ignore[no-untyped-call]

    def keep_hyperparameters(self) -> None:
        """Keep the config that the command line built this module from, so that a checkpoint can build it again.

        Modules made in Python are not kept: pickled, they would make the checkpoint unreadable without running code.
        """
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters(logger=False)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook it is in some 40 times a step; nn.Module's own way to set a name takes microseconds each.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return cast(nn.Module, getattr(self, self.role))

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
                weights = specialist_weights(self.net, network_weights(content), theirs, self.spec or {}, what)
                load_weights(self.net, weights, what)
            self._build_losses(datamodule)
        if not self._attached:
            self._check_output()
            if self.channels_last:
                self.to(memory_format=torch.channels_last)
        self._attached = True

    def setup(self, stage: str) -> None:
        if (datamodule := getattr(self.trainer, "datamodule", None)) is None:
            raise UserError("give the Trainer a datamodule: trainer.fit(module, datamodule=...)")
        self.attach(datamodule, stage)

    def _blank_batch(self) -> Batch:
        assert self.spec is not None
        teacher = blank_inputs(self.spec, 2, "teacher_inputs") if "teacher_inputs" in self.spec else None
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
        teacher = self._teacher_probe(datamodule, set().union(*(loss.teacher_roles for loss in losses)))
        if roles := set().union(*(loss.student_roles for loss in losses)):
            self.taps = Taps(self.net, self.layers, roles)
        student = Probe(self._run_blank(), self.taps.modules if self.taps else {}, self.spec or {})
        self._learns = teacher is not None
        for name, loss in zip(self.losses, losses, strict=True):
            if loss.uses_teacher and teacher is None:
                raise UserError(f"the loss {name!r} needs a teacher; use DistillationModule and model.teacher")
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
        student = run_network(self.net, batch.inputs, self.taps)
        teacher = self.teach(batch) if self._learns else None
        terms = [loss(student, teacher, batch) for loss in self.losses.values()]
        samples: Tensor | float = len(batch)
        if self._world_size > 1:
            samples, terms = self._joined(batch, terms)
        total = cast(Tensor, sum(w * t for w, t in zip(self._weights.values(), terms, strict=True)))
        # Only references are kept here; sums are taken once a window, so that no step waits for the device.
        self._window.append((samples, [total.detach(), *(t.detach() for t in terms)]))
        return total

    def _joined(self, batch: Batch, terms: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Each process's losses, scaled so that their mean over processes, and that of the gradients, is the joined batch's.

        Returns:
            The samples of the joined batch, divided by the number of processes; and the scaled losses.
        """
        own = [cast(DistillLoss, loss).counted(batch) for loss in self.losses.values()]
        counts = torch.stack([batch.target.new_tensor(0 if batch.ghost else len(batch)), *own])
        total = counts.clone()
        torch.distributed.all_reduce(total)
        scales = counts[1:] * self._world_size / total[1:].clamp(min=1)
        return total[0] / self._world_size, [term * scale for term, scale in zip(terms, scales, strict=True)]

    def on_train_epoch_start(self) -> None:
        self._weights = {n: cast(DistillLoss, loss).weight_at(self.current_epoch) for n, loss in self.losses.items()}
        self._window, self._epoch_sums = [], None
        self._world_size = self.trainer.world_size

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout is a function of (seed, epoch, batch, rank), so that a resumed run draws what the uninterrupted one drew.
        reseed(self.device, run_seed(), "step", self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.objective(batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for module in self._constrained:
            module.after_step()  # type: ignore[operator]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self._window) >= cast(Any, self.trainer).log_every_n_steps or self.trainer.is_last_batch:
            self._close_window()

    def _close_window(self) -> None:
        """Add the window's losses to the epoch's sums; stop where the loss is no longer finite."""
        if not self._window:
            return
        samples = torch.tensor([float(size) for size, _ in self._window], dtype=torch.float64)
        values = torch.stack([torch.stack(values) for _, values in self._window]).double().cpu()
        self._window = []
        if not bool(values[:, 0].isfinite().all()):
            raise UserError(
                f"the loss became {values[~values[:, 0].isfinite(), 0][0].item()} in epoch {self.current_epoch}, at or before "
                f"step {self.global_step}; lower the learning rate, or clip gradients with --trainer.gradient_clip_val=1"
            )
        sums = torch.cat([samples @ values, samples.sum()[None]])
        self._epoch_sums = sums if self._epoch_sums is None else self._epoch_sums + sums

    def on_train_epoch_end(self) -> None:
        self._close_window()  # max_steps may have cut the epoch short
        if not all(bool(p.isfinite().all()) for p in self.net.parameters()):
            raise UserError(f"weights became infinite or NaN in epoch {self.current_epoch}; lower the learning rate")
        if self._epoch_sums is not None:
            sums = self._epoch_sums.to(self.device, torch.float32)
            if self._world_size > 1:
                torch.distributed.all_reduce(sums)
            names = ("train_loss", *(f"train_loss_{name}" for name in self.losses))
            self.log_dict(dict(zip(names, sums[:-1] / sums[-1], strict=True)))
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = [p for m in (self.net, self.losses) for p in m.parameters() if p.requires_grad]
        return self._optimize(parameters, lambda: int(self.trainer.estimated_stepping_batches))

    def check_optimizer(self) -> None:
        """UserError where the optimizer or the scheduler refuses its arguments, before anything is trained."""
        self._optimize([nn.Parameter(torch.zeros(1))], lambda: 100)

    def _optimize(self, parameters: list[nn.Parameter], total_steps: Callable[[], int]) -> OptimizerLRScheduler:
        try:
            optimizer = self.optimizer(parameters)
            if self.scheduler is None:
                return optimizer
            if takes_total_steps(self.scheduler):
                scheduler = cast(Callable[..., LRScheduler], self.scheduler)(optimizer, total_steps=total_steps())
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "epoch"}}
        except (ValueError, TypeError) as error:
            raise UserError(f"model.optimizer or model.scheduler: {error}") from error

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
        values = {f"{stage}_{name}": value.float() for name, value in self.metrics.compute().items()}
        self.log_dict(values)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        said = {"logits": self._evaluate(batch).logits, "index": batch.index, "target": batch.target}
        return {name: tensor[:0] for name, tensor in said.items()} if batch.ghost else said

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        said = {"logits": run_network(self.net, batch.inputs).logits, "index": batch.index}
        return {name: tensor[:0] for name, tensor in said.items()} if batch.ghost else said

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def provenance(self) -> list[dict[str, Any]]:
        """Where the teacher's knowledge comes from, if there is one."""
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        config = self.hparams.get(self.role)
        checkpoint[KEY] = {
            "role": self.role,
            "network": plain(config) if config is not None else None,
            "spec": self.spec,
            "teacher": self.provenance(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint.get(KEY)
        if not ours or ours["role"] != self.role:
            raise UserError(f"the checkpoint is not one of a {type(self).__name__}; resume with the config that made it")
        if not self._attached:
            self.spec = ours["spec"]  # the hyper-parameters' copy went through YAML, which takes some names for numbers

    def _keep_loss_state(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Adapters are built when the data is known: until then their saved state waits."""
        if self._losses_built:
            return
        built = {f"{prefix}losses.{key}" for key in self.losses.state_dict()}
        for key in [k for k in state if k.startswith(f"{prefix}losses.") and k not in built]:
            self._pending_losses[key.removeprefix(f"{prefix}losses.")] = state.pop(key)
