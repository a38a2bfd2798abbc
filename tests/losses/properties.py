"""Checks that hold for any distillation loss. A loss's test file calls those that apply to it.

`make` returns a fresh loss, built if it has adapters. `ALL` contains the checks that every loss
passes; `batch_size` is for losses that are a mean over samples; `minimum` and `agrees` take the
expected result as an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.testing import assert_close

from kd_lightning.losses import DistillLoss
from kd_lightning.types import Batch, EnsembleOutput, Output, full

Make = Callable[[], DistillLoss]


@dataclass
class Case:
    """What one call of a loss sees."""

    student: Output
    teacher: Output
    batch: Batch


Check = Callable[[Make, Case], None]


def random_case(
    rows: int = 6, classes: int = 5, scale: float = 1.0, seed: int = 0
) -> Case:
    """Random float64 logits, every row labelled."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(
        2, rows, classes, generator=rng, dtype=torch.float64
    )
    target = torch.randint(classes, (rows,), generator=rng)
    return Case(
        Output(student),
        Output(teacher),
        Batch(torch.zeros(rows, 1), target, torch.arange(rows)),
    )


def change(output: Output, how: Callable[[Tensor], Tensor]) -> Output:
    """The output with every tensor that has a batch axis changed."""
    changed = replace(
        output,
        logits=how(output.logits),
        features={k: how(f) for k, f in output.features.items()},
    )
    if isinstance(changed, EnsembleOutput):
        changed.members = how(changed.members)
    return changed


def tensors(output: Output) -> list[Tensor]:
    return [
        output.logits,
        *output.features.values(),
        *([output.members] if isinstance(output, EnsembleOutput) else []),
    ]


def jitter(step: float, tensor: Tensor) -> Tensor:
    return tensor + step * torch.randn(
        tensor.shape, generator=torch.Generator().manual_seed(1)
    )


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def both(case: Case, how: Callable[[Tensor], Tensor]) -> Case:
    return replace(
        case, student=change(case.student, how), teacher=change(case.teacher, how)
    )


def select(case: Case, rows: Tensor) -> Case:
    old = case.batch
    batch = replace(
        old,
        inputs=torch.zeros(len(rows), 1),
        target=old.target[rows],
        index=old.index[rows],
        view=old.view if isinstance(old.view, int) else old.view[rows],
    )
    return replace(both(case, lambda t: t[rows]), batch=batch)


def cast(case: Case, dtype: torch.dtype) -> Case:
    return both(case, lambda t: t.to(dtype))


def value_of(make: Make, case: Case) -> Tensor:
    """The loss of a case; adapters start from the same numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        value: Tensor = make().to(full(case.student.logits).dtype)(
            case.student, case.teacher, case.batch
        )
    assert value.shape == (), f"a loss is a scalar, not {tuple(value.shape)}"
    return value


def gradients_of(make: Make, case: Case) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient for each of the student's tensors (zeros for those it does not read)."""
    case = replace(case, student=change(case.student, leaf))
    value = value_of(make, case)
    return value.detach(), list(
        torch.autograd.grad(value, tensors(case.student), materialize_grads=True)
    )


def minimum(make: Make, best: Case, value: float = 0.0, atol: float = 1e-9) -> None:
    """At the best student the loss is `value` with no gradient; every step away from it costs."""
    found, gradients = gradients_of(make, best)
    assert_close(found.item(), value, rtol=0, atol=atol)
    for gradient in gradients:
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=atol)
    for step in (0.01, 0.1, 1.0, 10.0):
        moved = replace(best, student=change(best.student, partial(jitter, step)))
        assert value_of(make, moved) > found, f"not larger {step} away from the minimum"


def batch_order(make: Make, case: Case) -> None:
    order = torch.randperm(len(case.batch), generator=torch.Generator().manual_seed(1))
    value, gradients = gradients_of(make, case)
    shuffled_value, shuffled_gradients = gradients_of(make, select(case, order))
    assert_close(shuffled_value, value)
    assert_close(shuffled_gradients, [gradient[order] for gradient in gradients])


def batch_size(make: Make, case: Case) -> None:
    """Two equal halves together cost the mean of what they cost alone."""
    first, second = torch.arange(len(case.batch)).chunk(2)
    assert len(first) == len(second), "give an even number of rows"
    halves = value_of(make, select(case, first)) + value_of(make, select(case, second))
    assert_close(value_of(make, case), halves / 2)


def saturated(make: Make, case: Case) -> None:
    """Logits of +-1e4 give a finite loss and finite gradients, in single and half precision and under autocast."""

    def saturate(output: Output) -> Output:
        return replace(
            change(output, lambda t: 1e4 * t.sign()), features=output.features
        )

    case = replace(case, student=saturate(case.student), teacher=saturate(case.teacher))
    for dtype, enabled in (
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.float32, True),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value, gradients = gradients_of(make, cast(case, dtype))
        assert all(t.isfinite().all() for t in (value, *gradients)), (
            f"{value} in {dtype}, autocast {enabled}"
        )


def half_precision(make: Make, case: Case, rtol: float = 1e-5) -> None:
    """What single precision gives, within `rtol` (wider for adapters, which autocast runs in half precision)."""
    single = cast(case, torch.float32)
    assert_close(
        value_of(make, single).double(), value_of(make, case), rtol=1e-3, atol=0
    )
    value, gradients = gradients_of(make, single)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(
            gradients_of(make, single), (value, gradients), rtol=rtol, atol=rtol
        )
    # Rounding the inputs to bfloat16 changes the loss; computing from the rounded inputs in half precision must not.
    rounded = cast(case, torch.bfloat16)
    value, gradients = gradients_of(make, cast(rounded, torch.float32))
    half_value, half_gradients = gradients_of(make, rounded)
    assert_close(half_value, value, rtol=rtol, atol=rtol)  # compares the dtype too
    assert_close([g.float() for g in half_gradients], gradients, rtol=2**-8, atol=1e-6)


MANY_INPUTS = 150


def double_gradients(make: Make, case: Case) -> None:
    """Gradients agree with finite differences in double precision."""

    def value(*changed: Tensor) -> Tensor:
        student = Output(
            changed[0], dict(zip(case.student.features, changed[1:], strict=True))
        )
        return value_of(make, replace(case, student=student))

    inputs = [leaf(t) for t in tensors(case.student)]
    # One element at a time, or all along random directions if there are many.
    many = sum(t.numel() for t in inputs) > MANY_INPUTS
    assert torch.autograd.gradcheck(value, inputs, fast_mode=many)


def gradient_reach(make: Make, case: Case) -> None:
    """The gradient reaches the student and never the teacher."""
    student, teacher = change(case.student, leaf), change(case.teacher, leaf)
    torch.autograd.backward(
        value_of(make, replace(case, student=student, teacher=teacher))
    )
    assert any(t.grad is not None and t.grad.any() for t in tensors(student)), (
        "no gradient reaches the student"
    )
    assert all(t.grad is None for t in tensors(teacher)), (
        "a gradient reaches the teacher"
    )


def agrees(make: Make, reference: Callable[[Case], float], rtol: float = 1e-9) -> None:
    """The loss is what an independent formula gives, on flat, ordinary and nearly one-hot distributions."""
    for seed, (classes, scale) in enumerate(product((2, 7), (0.1, 1.0, 30.0))):
        case = random_case(classes=classes, scale=scale, seed=seed)
        assert_close(value_of(make, case).item(), reference(case), rtol=rtol, atol=0)


def minimum_at_teacher(make: Make, case: Case) -> None:
    """A loss that declares it is 0, without a gradient, only where student and teacher agree."""
    if make().minimum_at_teacher:
        minimum(make, replace(case, student=case.teacher))


ALL: tuple[Check, ...] = (
    batch_order,
    saturated,
    half_precision,
    double_gradients,
    gradient_reach,
    minimum_at_teacher,
)
