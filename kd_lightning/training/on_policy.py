"""Training a language model on its own texts: GKD, Agarwal et al. 2024."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kd_lightning.data.corpus.completions import prompts_of, with_completions
from kd_lightning.data.corpus.datamodule import TextCorpusDataModule
from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, is_number
from kd_lightning.losses.gjsd import GJSD
from kd_lightning.models import CausalLanguageModel
from kd_lightning.models.generation import Sampling, generate
from kd_lightning.randomness import run_seed, uniform
from kd_lightning.teachers.base import Teacher
from kd_lightning.training import lightning_compat
from kd_lightning.training.distillation import DistillationModule
from kd_lightning.training.module import Trains
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    default_optimizer,
)
from kd_lightning.training.parameter_groups import ParameterGroup
from kd_lightning.types import Batch


class OnPolicyModule(DistillationModule):
    r"""Distills a causal language model on texts that the student itself continues.

    In a share $\lambda$ of the steps, the student completes the prompts of the batch,
    and the live teacher scores the student's tokens. In the other steps, both read the
    completions of the data, as in `DistillationModule` (Agarwal et al. 2024, algorithm
    1). With `share=0` it is `DistillationModule`, to the bit.

    No gradient flows through the sampling. Only tokens of completions count, with the
    token that ends them; prompts and padding count nowhere. The student's tokens are no
    labels, so that hard losses such as `CrossEntropy` are 0 on them.

    The choice of a step is a function of (seed, epoch, batch), and each token one of
    (seed, epoch, batch, process, sample, position). A resumed run thus equals an
    uninterrupted one. Metrics are measured on the data's completions.

    The data must be `TextCorpusDataModule` with `packed=False`, one text per block. A
    prompt and its completion fill at most a block.

    Args:
        share: the share of steps with the student's completions, in [0, 1]; the paper's
            lambda.
        temperature: of the sampling; that of the losses is their own.
        top_p: see `Sampling`.
        max_new_tokens: the longest completion; `None`: up to the end of the block.
        prompt_tokens: tokens that a prompt has at least. A text without a prompt of its
            own begins with so many of its tokens.
        losses: by name; each compares rows, one per token. Default: `GJSD` at
            temperature 1.
        student, teacher, optimizer, scheduler, layers, init_from, spec, channels_last,
            train, outputs, parameter_groups: see DistillationModule.

    Raises:
        UserError: for an option out of range, or a loss that does not compare rows.
    """

    paper: ClassVar[str] = "Agarwal et al. 2024, arXiv 2306.13649"
    year: ClassVar[int] = 2024

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        losses: dict[str, DistillLoss] | None = None,
        share: float = 0.5,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        prompt_tokens: int = 1,
        optimizer: OptimizerFactory = default_optimizer,
        scheduler: SchedulerFactory | None = None,
        layers: dict[str, str] | None = None,
        init_from: str | None = None,
        spec: dict[str, Any] | None = None,
        channels_last: bool = False,
        train: Trains = "both",
        outputs: int | str | None = None,
        parameter_groups: list[ParameterGroup] | None = None,
    ) -> None:
        if losses is None:
            losses = {"gjsd": GJSD(temperature=1.0)}
        super().__init__(
            student=student,
            teacher=teacher,
            losses=losses,
            optimizer=optimizer,
            scheduler=scheduler,
            layers=layers,
            init_from=init_from,
            spec=spec,
            channels_last=channels_last,
            train=train,
            outputs=outputs,
            parameter_groups=parameter_groups,
        )
        if not is_number(share) or not 0 <= share <= 1:
            raise UserError(f"model.share must be a number in [0, 1], got {share}")
        if prompt_tokens < 1:
            raise UserError(
                f"model.prompt_tokens must be at least 1, got {prompt_tokens}"
            )
        self.share = float(share)
        self.prompt_tokens = prompt_tokens
        self.sampling = Sampling(temperature, top_p, False, max_new_tokens)
        self._end = 0
        self.keep_hyperparameters()

    # -- before training ---------------------------------------------------------------

    def attach(self, datamodule: DataModule, stage: str = "fit") -> None:
        """Check the data, the teacher and the losses; then see `DistillationModule`."""
        if stage == "fit" and self.share > 0:
            self._check_losses()
            self._check_teacher()
            self._generating_student()
            data = self._checked_data(datamodule)
            # A tokenizer knows its tokens only when it has learned its vocabulary.
            data.learn()
            self._end = data.tokenizer.end
        super().attach(datamodule, stage)

    def _check_losses(self) -> None:
        """Refuse losses that mean something else on the student's texts."""
        if not self.objective.uses_teacher:
            raise UserError(
                "OnPolicyModule needs a loss that compares student and teacher, such "
                "as kd_lightning.losses.GJSD"
            )
        for name, loss in self.objective.named_losses():
            # Layers yield features of prompts and padding, too.
            compares_rows = loss.mean_over in ("rows", "labelled")
            if not compares_rows or loss.student_roles or loss.teacher_roles:
                raise UserError(
                    f"OnPolicyModule counts the tokens of completions alone; the loss "
                    f"{name!r} compares more than logits; use a loss on logits such as "
                    "GJSD"
                )

    def _check_teacher(self) -> None:
        """Refuse a teacher that has stored its outputs."""
        if self.teacher.joins:
            raise UserError(
                "OnPolicyModule asks the teacher about new texts, which "
                f"{type(self.teacher).__name__} has no outputs for; use ModelTeacher"
            )

    def _checked_data(self, datamodule: DataModule) -> TextCorpusDataModule:
        """The data, if its blocks hold one text each."""
        if not isinstance(datamodule, TextCorpusDataModule):
            raise UserError(
                "OnPolicyModule trains language models; use "
                "--data=kd_lightning.data.TextCorpusDataModule, not "
                f"{type(datamodule).__name__}"
            )
        if datamodule.packed:
            raise UserError(
                "OnPolicyModule completes one prompt per block; set --data.packed=false"
            )
        return datamodule

    def _generating_student(self) -> CausalLanguageModel:
        """The student as a network that can generate text."""
        if not isinstance(self.net, CausalLanguageModel):
            raise UserError(
                "OnPolicyModule needs a student that generates text, "
                "kd_lightning.models.CausalLanguageModel, not "
                f"{type(self.net).__name__}"
            )
        return self.net

    # -- training ----------------------------------------------------------------------

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        if self.share == 0:
            return
        if self.trainer.accumulate_grad_batches != 1:
            raise UserError(
                "OnPolicyModule cannot accumulate gradients, because the number of "
                "tokens of later batches is not known yet; set "
                "--trainer.accumulate_grad_batches=1 and a larger --data.batch_size"
            )
        if not lightning_compat.has_whole_weights(self.trainer):
            raise UserError(
                "OnPolicyModule needs all weights in each process; use "
                "--trainer.strategy=ddp"
            )
        # An earlier step that failed could not be repeated: the student has changed.
        if self.trainer.world_size == 1:
            self._checks_steps = True

    def is_on_policy(self, batch_idx: int) -> bool:
        """Whether the student completes the prompts in a step of the current epoch.

        The same in all processes.

        Args:
            batch_idx: in the epoch.
        """
        number = torch.tensor([batch_idx])
        draw = uniform(number, "on policy", run_seed(), self.current_epoch)
        return bool(draw < self.share)

    @lightning_compat.with_known_signature
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The total of all losses; the student may complete the prompts first.

        Args:
            batch: on the device.
            batch_idx: in the epoch.
        """
        # A placeholder keeps a process in step with the others, and nothing counts it.
        if self.is_on_policy(batch_idx) and not batch.placeholder:
            batch = self.completed(batch, batch_idx)
        return super().training_step(batch, batch_idx)

    def completed(self, batch: Batch, batch_idx: int) -> Batch:
        """The prompts of a batch with the student's completions.

        Args:
            batch: on the device, with `input_ids` int64 `(B, L)`.
            batch_idx: in the current epoch.
        """
        prompts = prompts_of(batch, self.prompt_tokens)
        completions = generate(
            self._generating_student(),
            prompts,
            self._end,
            self.sampling,
            seed=("on policy", *self.step_seed(batch_idx)),
            # The last token of a block is a target, and not read.
            longest=batch.target.shape[1] + 1,
        )
        return with_completions(batch, prompts, completions, self._end)
