"""What the tests of losses on logits share, besides `properties`: an example, and more checks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close

from kd_lightning import losses
from kd_lightning.errors import UserError
from kd_lightning.losses import DistillLoss
from kd_lightning.losses.base import weight_of
from kd_lightning.types import UNLABELLED, Batch, EnsembleOutput, Output, mean_log_probs
from tests.losses.properties import (
    Case,
    Check,
    Make,
    both,
    gradients_of,
    select,
    value_of,
)

METHODS = Path(__file__).resolve().parents[2] / "configs" / "methods"


def case_of(
    student: list[list[float]],
    teacher: list[list[float]],
    target: list[int] | None = None,
) -> Case:
    """A case of these logits, in double precision; all labels are 0 if there are none."""
    labels = [0] * len(student) if target is None else target
    batch = Batch(
        torch.zeros(len(student), 1), torch.tensor(labels), torch.arange(len(student))
    )
    return Case(
        Output(torch.tensor(student, dtype=torch.float64)),
        Output(torch.tensor(teacher, dtype=torch.float64)),
        batch,
    )


def example() -> Case:
    """The example for which values are known from elsewhere: KL(p | q) at T = 1 is 0.154219."""
    return case_of([[1, 0, -1], [0, 2, 1]], [[2, 0, 1], [1, 3, 0]], [0, 1])


def logits_of(case: Case) -> tuple[list[list[float]], list[list[float]]]:
    """The student's and the teacher's logits, for a reference."""
    return case.student.logits.tolist(), case.teacher.logits.tolist()


def random_ensemble(rows: int = 6, classes: int = 5) -> EnsembleOutput:
    rng = torch.Generator().manual_seed(7)
    members = torch.randn(rows, 2, classes, generator=rng, dtype=torch.float64)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    return EnsembleOutput(
        mean_log_probs(members, weights), members=members, weights=weights
    )


def unlabelled(case: Case, rows: list[int]) -> Case:
    case.batch.target[rows] = UNLABELLED
    return case


def shipped(name: str) -> dict[str, DistillLoss]:
    """The losses of a method's YAML."""
    content = yaml.safe_load((METHODS / f"{name}.yaml").read_text())
    built = {}
    for key, entry in content["model"]["init_args"]["losses"].items():
        loss = getattr(losses, entry["class_path"].rpartition(".")[2])
        built[key] = loss(**entry["init_args"])
    return built


# -- checks of every loss on logits ----------------------------------------------------------------


def duplication(make: Make, case: Case) -> None:
    """A batch given twice costs what it costs once, and each copy gets half of the gradient."""
    rows = torch.arange(len(case.batch))
    value, gradients = gradients_of(make, case)
    twice_value, twice_gradients = gradients_of(
        make, select(case, torch.cat([rows, rows]))
    )
    assert_close(twice_value, value)
    for once, twice in zip(gradients, twice_gradients, strict=True):
        assert_close(twice, torch.cat([once, once]) / 2)


def class_order(make: Make, case: Case) -> None:
    """New names for the classes of both networks and of the labels change nothing."""
    classes = case.student.logits.shape[1]
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(3))
    permuted = both(case, lambda logits: logits[..., order])
    target = order.argsort()[case.batch.target]
    permuted = replace(permuted, batch=replace(case.batch, target=target))
    assert_close(value_of(make, permuted), value_of(make, case))


def impossible_classes(make: Make, case: Case) -> None:
    """As many classes again that both networks rule out leave the value and the gradient."""
    value, (gradient,) = gradients_of(make, case)
    for lowest in (-1e4, -math.inf):
        widened = both(case, lambda x: torch.cat([x, torch.full_like(x, lowest)], -1))  # noqa: B023
        wide_value, (wide_gradient,) = gradients_of(make, widened)
        assert_close(wide_value, value)
        assert_close(wide_gradient[:, : gradient.shape[1]], gradient)
        assert wide_gradient[:, gradient.shape[1] :].abs().max() < 1e-9


def ruled_out_by_the_teacher(make: Make, case: Case) -> None:
    """Finite, where the teacher alone rules out a class or all classes but one."""
    for masked in ([4], [0], [0, 1], [1, 2, 3, 4]):
        logits = case.teacher.logits.clone()
        logits[:, masked] = -math.inf
        value, gradients = gradients_of(make, replace(case, teacher=Output(logits)))
        assert value.isfinite(), masked
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), masked


def one_sample(make: Make, case: Case) -> None:
    """Finite on one sample, on equal rows and on uniform ones."""
    alone = select(case, torch.tensor([0]))
    equal = select(case, torch.tensor([0, 0, 0]))
    for changed in (alone, equal, both(case, torch.zeros_like)):
        value, gradients = gradients_of(make, changed)
        assert value.isfinite()
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def needs_a_teacher(make: Make, case: Case) -> None:
    loss = make()
    with pytest.raises(UserError, match=f"{type(loss).__name__} needs a teacher"):
        loss(case.student, None, case.batch)


def counts_unlabelled_rows(make: Make, case: Case) -> None:
    """Labels do not matter, nor whether there are any."""
    value = value_of(make, case)
    nameless = replace(
        case, batch=replace(case.batch, target=torch.full_like(case.batch.target, -100))
    )
    assert_close(value_of(make, nameless), value)
    if make().mean_over == "rows":
        assert weight_of("rows", nameless.batch) == len(case.batch)


def ignores_unlabelled_rows(make: Make, case: Case) -> None:
    """Rows without a label have no cost and no gradient, and are not counted."""
    assert make().mean_over == "labelled"
    target = case.batch.target.clone()
    target[[1, 4]] = UNLABELLED
    partly = replace(case, batch=replace(case.batch, target=target))
    value, (gradient, *_) = gradients_of(make, partly)
    labelled = torch.tensor([0, 2, 3, 5])
    assert_close(value, value_of(make, select(partly, labelled)))
    assert not gradient[[1, 4]].any()
    assert gradient[labelled].any(dim=1).all()
    assert weight_of("labelled", partly.batch) == 4
    nameless = replace(
        case, batch=replace(case.batch, target=torch.full_like(target, UNLABELLED))
    )
    value, gradients = gradients_of(make, nameless)  # fails without a graph
    assert value == 0
    assert not any(bool(gradient.any()) for gradient in gradients)


def mixes_labels(make: Make, case: Case) -> None:
    """A mixed sample costs what each of its labels costs, by its share; an unknown one nothing."""
    partner = torch.tensor([0, 1, 2, UNLABELLED, UNLABELLED, 3])
    share = torch.tensor([1.0, 0.0, 0.25, 0.25, 0.25, 0.5], dtype=torch.float64)
    target = case.batch.target.clone()
    target[[1, 4]] = UNLABELLED
    batch = replace(case.batch, target=target, partner=partner, share=share)
    total = 0.0
    for row in range(6):
        for labels, part in ((target, share[row]), (partner, 1 - share[row])):
            plain = replace(case, batch=replace(case.batch, target=labels))
            alone = select(plain, torch.tensor([row]))
            total += float(part) * value_of(make, alone).item()
    # All but the fifth, neither part of which has a label.
    assert weight_of("labelled", batch) == 5
    assert value_of(make, replace(case, batch=batch)).item() == pytest.approx(total / 5)


def ensembles(make: Make, case: Case) -> None:
    """An ensemble of one network costs what the network costs; a real one is finite."""
    members = case.teacher.logits[:, None]
    weights = torch.ones(1, dtype=torch.float64)
    single = EnsembleOutput(
        mean_log_probs(members, weights), members=members, weights=weights
    )
    assert_close(value_of(make, replace(case, teacher=single)), value_of(make, case))
    assert value_of(
        make, replace(case, teacher=random_ensemble(len(case.batch)))
    ).isfinite()


ALWAYS: tuple[Check, ...] = (class_order, ruled_out_by_the_teacher, one_sample)
SOFT: tuple[Check, ...] = (
    *ALWAYS,
    duplication,
    impossible_classes,
    needs_a_teacher,
    counts_unlabelled_rows,
    ensembles,
)
"""For a mean over rows of a cost that reads both distributions and no labels."""

LABELLED: tuple[Check, ...] = (
    *ALWAYS,
    duplication,
    needs_a_teacher,
    ensembles,
    ignores_unlabelled_rows,
)
"""For a mean over labelled rows. Most are also `mixes_labels` and `impossible_classes`."""
