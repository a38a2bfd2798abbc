"""A teacher that is the moving average of its student: Tarvainen and Valpola 2017."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_on_batch
from kd_lightning.outputs import PLAIN_READING, Reading
from kd_lightning.tasks.base import Task
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Output

Buffers = Literal["average", "copy"]


def decay_of_update(update: int, decay: float) -> float:
    """The share of its own weights that the teacher keeps in an update.

    `min(1 - 1 / (t + 1), decay)` for update t, from 1: at first the plain mean over all steps, so
    that the random initial weights are soon forgotten (Tarvainen and Valpola 2017, their code).
    """
    return min(1 - 1 / (update + 1), decay)


class EMATeacher(Teacher):
    r"""The exponential moving average of the student's weights: mean teacher.

    After update t of the student's weights $\theta_t$, the teacher's are
    $\theta'_t = a_t \theta'_{t-1} + (1 - a_t) \theta_t$ with $a_t = \min(1 - 1/(t+1), a)$
    (Tarvainen and Valpola 2017, equation 2, with the ramp of their code). It starts as a copy of
    the student. Any loss can learn from it, on unlabelled samples too; the paper's is
    `kd_lightning.losses.Consistency`.

    The checkpoint holds the average as `teacher.network.*` and the number of updates, and every
    evaluation logs its `val_teacher_accuracy` (or what the task monitors). It costs a forward pass
    and the memory of a second network. With weights in bfloat16 (`bf16-true`) a decay close to 1
    would round its changes away; use `bf16-mixed`.

    Like all teachers it predicts in eval mode, without dropout and with running statistics. In
    the paper's code it predicts in training mode, and its buffers move with its own batches; here
    they follow the student's, see `buffers`.

    Args:
        decay: a, at least 0 and below 1.
        buffers: "average" the floating-point buffers, such as the running statistics of
            BatchNorm, with the same decay, or "copy" the student's. Others are always copied.
        layers: module name for each role that a loss may ask for; by default the student's.
        other_view: let the teacher predict each sample from its other augmentation draw, as in the
            paper; needs `data.copies=2`. Otherwise both networks see the same inputs.

    Raises:
        UserError: if an argument is out of its range.
    """

    paper: ClassVar[str] = "Tarvainen and Valpola 2017, arXiv 1703.01780"
    year: ClassVar[int] = 2017
    learns: ClassVar[bool] = True

    updates: Tensor

    def __init__(
        self,
        decay: float = 0.999,
        buffers: Buffers = "average",
        layers: dict[str, str] | None = None,
        other_view: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(decay, bool) or not 0 <= decay < 1:
            raise UserError(
                f"EMATeacher: decay must be at least 0 and below 1, got {decay}"
            )
        if buffers not in get_args(Buffers):
            raise UserError(
                f"EMATeacher: buffers must be 'average' or 'copy', got {buffers!r}"
            )
        self.decay = decay
        self.buffers_mode = buffers
        self.layers = None if layers is None else dict(layers)
        self.other_view = other_view
        self.network: nn.Module | None = None
        self.taps: Taps | None = None
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # The same number without a wait for the device; `None` if it must be read again.
        self._count: int | None = 0
        # In a tuple: as a submodule, the student would be frozen and stored twice.
        self._student: tuple[nn.Module, ...] = ()
        self._student_layers: dict[str, str] = {}
        self._reading = PLAIN_READING
        self._task: Task | None = None
        self.register_load_state_dict_post_hook(EMATeacher._forget_count)  # type: ignore[no-untyped-call]

    @staticmethod
    def _forget_count(module: nn.Module, incompatible_keys: object) -> None:
        assert isinstance(module, EMATeacher)
        module._count = None

    # -- the student ------------------------------------------------------------------------------

    def follow(
        self,
        student: nn.Module,
        layers: Mapping[str, str],
        reading: Reading = PLAIN_READING,
    ) -> None:
        """Begin as a copy of the student's weights.

        Raises:
            UserError: if the network cannot be copied.
        """
        try:
            network = copy.deepcopy(student)
        except Exception as error:
            raise UserError(
                f"EMATeacher cannot copy the student {type(student).__name__}: {error}"
            ) from error
        self.network = network
        self._student = (student,)
        self._student_layers = dict(layers)
        self._reading = reading
        self.updates.zero_()
        self._count = 0
        self.requires_grad_(False)
        self.train(False)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average toward the student's weights."""
        if self.network is None:
            return
        if self._count is None:
            self._count = int(self.updates)
        self._count += 1
        self.updates.fill_(self._count)
        (student,) = self._student
        decay = decay_of_update(self._count, self.decay)
        averaged: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = [each.detach() for each in student.parameters()]
        pairs = zip(self.network.buffers(), student.buffers(), strict=True)
        for own, other in pairs:
            if self.buffers_mode == "average" and own.is_floating_point():
                averaged.append(own)
                current.append(other)
            else:
                own.copy_(other)
        if averaged:
            get_ema_multi_avg_fn(decay)(averaged, current, None)

    # -- the teacher ------------------------------------------------------------------------------

    def prepare(self, datamodule: DataModule) -> None:
        if self.other_view and datamodule.copies != 2:
            raise UserError(
                f"EMATeacher: other_view needs two views of each sample, but data.copies is "
                f"{datamodule.copies}; set data.copies=2, or other_view to false"
            )
        self._task = datamodule.task
        super().prepare(datamodule)

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        network = self._followed()
        if self.taps is not None:
            self.taps.close()
            self.taps = None
        if not roles:
            return {}
        layers = self._student_layers if self.layers is None else self.layers
        reading = Reading(
            self._reading.entry, owner="the teacher", option="--model.teacher"
        )
        self.taps = Taps(network, layers, roles, reading)
        return self.taps.modules

    def outputs(self, batch: Batch) -> Output:
        network = self._followed()
        assert self._task is not None, "prepare() comes first"
        # The student's own inputs: its copy cannot read another encoding.
        output = run_on_batch(network, batch, self._task.rows, self.taps, self._reading)
        # Evaluation and the probe show one clean view.
        if not self.other_view or not isinstance(batch.view, Tensor):
            return output
        if batch.target.ndim != 1 or batch.partner is not None:
            raise UserError(
                "EMATeacher: other_view needs one label per sample, and samples that are not "
                "mixed; set other_view to false"
            )
        # The first half of the rows shows one view of the samples, the second half the other.
        half = len(batch) // 2
        return output.map(lambda tensor: tensor.roll(half, 0))

    def _followed(self) -> nn.Module:
        if self.network is None:
            raise UserError(
                "EMATeacher averages a student in training; use it as model.teacher of a "
                "DistillationModule, or call follow(student, layers)"
            )
        return self.network

    def sources(self) -> list[dict[str, object]]:
        return [{"average_of": "student", "decay": self.decay}]
