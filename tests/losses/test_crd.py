from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from kd_lightning.errors import UserError
from kd_lightning.losses import Probe
from kd_lightning.losses._adapters import Convention
from kd_lightning.losses._negatives import UNSEEN, Negatives, draw_negatives
from kd_lightning.losses.base import weight_of
from kd_lightning.losses.crd import CRD, nce
from kd_lightning.spec import Spec
from kd_lightning.types import UNLABELLED, Output
from tests.losses import properties
from tests.losses.properties import Case
from tests.losses.relations import (
    PROPERTIES,
    feature_case,
    features,
    fitted,
    gradients_of_adapters,
    method,
    of_rows,
    residual,
    rows_of,
    stays_finite,
    trains,
    with_features,
)
from tests.reference import crd as reference
from tests.training.small import copied, same

LAYER, ROWS = "penultimate", 20
CASE = partial(feature_case, LAYER)
each_kind = pytest.mark.parametrize("negatives", get_args(Negatives))


def built(
    rows: int = ROWS,
    student: int = 4,
    teacher: int = 3,
    trained: int | None = None,
    **arguments: Any,
) -> CRD:
    """A loss in double precision for features of these widths, with adapters and banks that are always the same."""
    loss = CRD(
        **{
            "dimensions": 5,
            "num_negatives": 7,
            "temperature": 0.07,
            "convention": "benchmark",
            **arguments,
        }
    )
    spec = Spec("features", source_samples=rows, samples={"train": trained or rows})
    probes = (
        Probe(Output(torch.zeros(2, 5), {LAYER: torch.zeros(2, width)}), spec)
        for width in (student, teacher)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss.build(*probes)
    return loss.double()


def run_in(**arguments: Any) -> CRD:
    """One that has seen every row once, with the labels of `CASE`: Z is fixed, and the banks are in use."""
    loss, case = built(**arguments), CASE(ROWS, seed=9)
    loss(case.student, case.teacher, case.batch)
    return loss


def state(loss: CRD) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loss.named_buffers()}


VARIANTS: dict[str, Callable[[], CRD]] = {
    "class": run_in,
    "instance": partial(run_in, negatives="instance"),
    "paper": partial(run_in, convention="paper", temperature=0.1),
    "in batch, class": partial(built, in_batch=True),
    "in batch, instance": partial(built, in_batch=True, negatives="instance"),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


@variants
@pytest.mark.parametrize("check", PROPERTIES)
def test_properties(check: properties.Check, variant: str) -> None:
    check(VARIANTS[variant], CASE())


@pytest.mark.parametrize("variant", ["class", "instance", "paper"])
def test_with_banks_it_is_a_mean_over_samples(variant: str) -> None:
    properties.batch_size(VARIANTS[variant], CASE())


def test_order_does_not_matter_in_the_first_batch() -> None:
    properties.batch_order(built, CASE())


def without_bias(**arguments: Any) -> CRD:
    """A feature of zeros then has no direction."""
    loss = built(**arguments)
    for name, parameter in loss.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return loss


@pytest.mark.parametrize(
    "make", [run_in, without_bias, partial(without_bias, in_batch=True)]
)
def test_stays_finite(make: Callable[[], CRD]) -> None:
    stays_finite(make, CASE())


@variants
def test_gradients_reach_the_adapters(variant: str) -> None:
    gradients = gradients_of_adapters(VARIANTS[variant](), CASE())
    assert gradients.keys() == {
        f"embeddings.{side}.{name}"
        for side in ("student", "teacher")
        for name in ("weight", "bias")
    }
    assert all(bool(gradient.any()) for gradient in gradients.values())


# -- values -----------------------------------------------------------------------------------------------------------


def embedded(loss: CRD, case: Case) -> tuple[reference.Rows, reference.Rows]:
    assert loss.embeddings is not None
    layers = loss.embeddings.state_dict()

    def of(side: str, feature: Tensor) -> reference.Rows:
        return reference.embedded(
            rows_of(feature),
            layers[f"{side}.weight"].tolist(),
            layers[f"{side}.bias"].tolist(),
        )

    student, teacher = features(case)
    return of("student", student), of("teacher", teacher)


@each_kind
@pytest.mark.parametrize("convention", get_args(Convention))
def test_three_steps_agree_with_reference(
    negatives: Negatives, convention: Convention
) -> None:
    loss = built(
        negatives=negatives, temperature=0.3, momentum=0.4, convention=convention
    )
    banks = [loss.student_bank.tolist(), loss.teacher_bank.tolist()]
    labels, constants = loss.labels.clone(), [1.0, 1.0]
    for step in range(3):
        case = CASE(seed=step)
        index = case.batch.index = torch.tensor(
            [[3, 0, 8, 5, 19, 11], [1, 2, 3, 4, 5, 6], [19, 8, 12, 13, 14, 15]]
        )[step]
        labels[index] = case.batch.target
        drawn = draw_negatives(labels, index, 7, torch.tensor(step), negatives, ROWS)
        chosen = torch.cat([index[:, None], drawn], 1).tolist()
        own, other = embedded(loss, case)
        of = [
            reference.scores(own, banks[1], chosen, 0.3),
            reference.scores(other, banks[0], chosen, 0.3),
        ]
        if step == 0 and convention == "benchmark":
            constants = [reference.first_constant(side, ROWS) for side in of]
        expected = sum(
            reference.critic_loss(side, z, ROWS)
            for side, z in zip(of, constants, strict=True)
        )
        value = loss(case.student, case.teacher, case.batch).item()
        assert value == pytest.approx(expected, rel=1e-9)
        banks = [
            reference.remembered(bank, index.tolist(), new, 0.4)
            for bank, new in zip(banks, (own, other), strict=True)
        ]
        for found, wanted in zip(
            (loss.student_bank, loss.teacher_bank), banks, strict=True
        ):
            assert_close(found, torch.tensor(wanted, dtype=torch.float64))
        assert (loss.log_z.exp() * ROWS).tolist() == pytest.approx(constants)
        assert torch.equal(loss.labels, labels)
        assert loss.steps == step + 1


@each_kind
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_in_batch_agrees_with_reference(
    temperature: float, negatives: Negatives
) -> None:
    loss, case = (
        built(in_batch=True, negatives=negatives, temperature=temperature),
        CASE(9),
    )
    case.batch.target[[1, 4, 5]] = UNLABELLED
    target, by_class, (own, other) = (
        case.batch.target.tolist(),
        negatives == "class",
        embedded(loss, case),
    )
    expected = reference.info_nce(own, other, target, temperature, by_class)
    assert loss(case.student, case.teacher, case.batch).item() == pytest.approx(
        expected, rel=1e-9
    )
    unlike = reference.info_nce(own, other, target, temperature, not by_class)
    assert abs(unlike - expected) > 1e-3


def plain(**arguments: Any) -> CRD:
    """Two rows, two dimensions, and embeddings that are the features."""
    loss = built(2, 2, 2, dimensions=2, temperature=1.0, **arguments)
    assert loss.embeddings is not None
    for name, parameter in loss.embeddings.named_parameters():
        parameter.data.copy_(
            torch.eye(2) if name.endswith("weight") else torch.zeros(2)
        )
    return loss


SAME = [[1.0, 0.0], [0.0, 1.0]]


def test_banks_by_hand() -> None:
    # Each has one negative, the other row: inner products 1 and 0, Z = 1, N = 1.
    # - log(e / (e + 1)) - log(1 - 1 / (1 + 1)), from both sides.
    case = of_rows(LAYER, SAME, SAME)
    loss = plain(num_negatives=1, negatives="instance")
    loss.student_bank.copy_(torch.eye(2))
    loss.teacher_bank.copy_(torch.eye(2))
    loss.steps += 1  # Z stands already, at 1
    value = loss(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(2 * (math.log(1 + math.exp(-1)) + math.log(2)))


def test_in_batch_by_hand() -> None:
    case = of_rows(LAYER, SAME, SAME)
    value = plain(in_batch=True)(case.student, case.teacher, case.batch).item()
    assert value == pytest.approx(2 * math.log(1 + math.exp(-1)))
    # Of one class, neither is the other's negative: nothing is left to confuse it with.
    case.batch.target[:] = 1
    assert plain(in_batch=True)(case.student, case.teacher, case.batch).item() == 0
    apart = plain(in_batch=True, negatives="instance")
    assert apart(case.student, case.teacher, case.batch).item() == pytest.approx(value)


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_student_like_its_teacher_costs_less(in_batch: bool) -> None:
    """With one network for both, embeddings are those of its own sample, and no other's."""
    loss, case = built(teacher=4, in_batch=in_batch).eval(), CASE(teacher=(4,))
    assert loss.embeddings is not None
    loss.embeddings["teacher"].load_state_dict(loss.embeddings["student"].state_dict())
    if not in_batch:
        loss.student_bank[:6] = loss.teacher_bank[:6] = loss.embed(
            "teacher", case.teacher
        ).detach()
        loss.steps += 1  # Z stands, at 1
    _, teacher = features(case)
    cases = [
        with_features(case, student, teacher)
        for student in (teacher, features(case)[0], -teacher)
    ]
    alike, other, opposite = (loss(c.student, c.teacher, c.batch).item() for c in cases)
    assert alike < other < opposite


# -- negatives --------------------------------------------------------------------------------------------------------


def drawn(
    labels: Tensor, index: list[int], count: int = 4000, step: int = 0, **arguments: Any
) -> Tensor:
    return draw_negatives(
        labels, torch.tensor(index), count, torch.tensor(step), **arguments
    )


def uniform_over(rows: Tensor, expected: set[int]) -> bool:
    """Whether these are the rows drawn, each within five standard deviations of its share."""
    values, counts = rows.unique(return_counts=True)
    share = len(rows) / len(expected)
    return set(values.tolist()) == expected and bool(
        (counts - share).abs().max() < 5 * math.sqrt(share)
    )


def test_negatives_are_the_other_classes() -> None:
    labels = torch.arange(12) % 3
    negatives = drawn(labels, [5, 0, 7], negatives="class")
    for row, chosen in zip((5, 0, 7), negatives, strict=True):
        assert uniform_over(
            chosen, {other for other in range(12) if other % 3 != row % 3}
        )


def test_negatives_are_all_others() -> None:
    for row, chosen in zip(
        (5, 0, 11),
        drawn(torch.arange(12) % 3, [5, 0, 11], negatives="instance"),
        strict=True,
    ):
        assert uniform_over(chosen, set(range(12)) - {row})


def test_rows_without_a_label_are_others() -> None:
    labels = torch.tensor([0, 0, 1, 1, UNLABELLED, UNLABELLED])
    first, fourth, last = drawn(labels, [0, 3, 5])
    assert uniform_over(first, {2, 3, 4, 5})
    assert uniform_over(fourth, {0, 1, 4, 5})
    assert uniform_over(last, {0, 1, 2, 3, 4})


@each_kind
def test_unseen_rows_until_all_that_are_trained_on_were_seen(
    negatives: Negatives,
) -> None:
    labels = torch.tensor([UNSEEN, 0, 1, UNSEEN, 1, 0])
    own = {1, 5} if negatives == "class" else {1}
    (before,) = drawn(labels, [1], negatives=negatives, trained=5)
    assert uniform_over(before, set(range(6)) - own)
    (after,) = drawn(labels, [1], negatives=negatives, trained=4)
    assert uniform_over(after, {1, 2, 4, 5} - own)


def test_a_single_class_draws_from_all_other_rows() -> None:
    (chosen,) = drawn(torch.tensor([2, 2, UNSEEN, 2]), [1], trained=3)
    assert uniform_over(chosen, {0, 2, 3})
    (chosen,) = drawn(torch.tensor([2, 2, 2]), [1])
    assert uniform_over(chosen, {0, 2})


def test_draws_are_a_function_of_seed_step_and_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = torch.arange(1000) % 10
    first = drawn(labels, [5, 17, 3], 50)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(drawn(labels, [3, 99, 5, 17], 50)[[2, 3, 0]], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (drawn(labels, [5, 17, 3], 50, step=1) == first).float().mean() < 0.05
    assert (first[0] == first[1]).float().mean() < 0.1
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert (drawn(labels, [5, 17, 3], 50) == first).float().mean() < 0.05


# -- memory -----------------------------------------------------------------------------------------------------------


def test_only_training_is_remembered() -> None:
    loss, case = run_in(), CASE()
    before = state(loss)
    loss.eval()
    value = loss(case.student, case.teacher, case.batch)
    assert same(state(loss), before)
    loss.train()
    assert torch.equal(loss(case.student, case.teacher, case.batch), value)
    changed = {
        name
        for name, tensor in state(loss).items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"student_bank", "teacher_bank", "steps"}
    rows = (state(loss)["student_bank"] != before["student_bank"]).any(1)
    assert rows.nonzero().flatten().tolist() == case.batch.index.tolist()
    assert_close(loss.student_bank[:6].norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_the_size_of_the_banks() -> None:
    loss = built(rows=500, dimensions=128).float()
    assert (
        loss.student_bank.nbytes + loss.teacher_bank.nbytes
    ) * 100 == 51_200_000  # the docstring's 50,000 rows
    # At first of mean square length one, as a row that was trained on.
    assert loss.student_bank.square().sum(1).mean().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(loss.student_bank, loss.teacher_bank)
    assert not list(built(in_batch=True).buffers())


def test_banks_start_from_the_runs_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = state(built())
    torch.manual_seed(1)
    assert same(state(built()), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(built().student_bank, first["student_bank"])


@pytest.mark.parametrize("name", ["crd", "crd_inbatch"])
def test_trains_a_residual_network(name: str, tmp_path: Path) -> None:
    loss = method(name)[name]
    assert isinstance(loss, CRD)
    assert (loss.weight, loss.temperature, loss.dimensions, loss.in_batch) == (
        0.8,
        0.07,
        128,
        name == "crd_inbatch",
    )
    assert (loss.num_negatives, loss.momentum, loss.negatives) == (16384, 0.5, "class")
    _, content = trains(name, tmp_path)
    kept = {
        key.split(".", 2)[2]
        for key in content["state_dict"]
        if key.startswith("losses.")
    }
    adapters = {
        f"embeddings.{side}.{what}"
        for side in ("student", "teacher")
        for what in ("weight", "bias")
    }
    banks = {"student_bank", "teacher_bank", "labels", "steps", "log_z"}
    assert kept == (adapters | banks if name == "crd" else adapters)
    if name == "crd":
        assert content["state_dict"]["losses.crd.steps"] == 2
        assert (content["state_dict"]["losses.crd.labels"] >= 0).sum() == 32


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def module() -> Any:
        return residual({"crd": CRD(num_negatives=512, dimensions=16)})

    whole, first, second, fresh = (module() for _ in range(4))
    fitted(whole, max_epochs=2)
    fitted(first).save_checkpoint(tmp_path / "two.ckpt")
    content = torch.load(tmp_path / "two.ckpt", weights_only=True)
    fitted(second, max_epochs=2, ckpt=tmp_path / "two.ckpt")
    assert same(copied(second), copied(whole))
    assert second.losses["crd"].steps == 4
    # The banks matter: with those of the start the same two steps lead elsewhere.
    start = module()
    fitted(start, max_epochs=0)
    for key, tensor in start.state_dict().items():
        if key.startswith("losses.crd.") and "embeddings" not in key:
            content["state_dict"][key] = tensor
    torch.save(content, tmp_path / "emptied.ckpt")
    fitted(fresh, max_epochs=2, ckpt=tmp_path / "emptied.ckpt")
    assert not same(copied(fresh.net), copied(whole.net))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(precision: str) -> None:
    """Banks and adapters in another precision give the same losses, to the accuracy of that precision."""

    def losses(precision: str) -> list[float]:
        parts: dict[str, Any] = {
            "banks": CRD(num_negatives=512),
            "batch": CRD(in_batch=True),
        }
        metrics = fitted(
            residual(parts), precision=precision, limit_train_batches=4
        ).callback_metrics
        return [metrics["train_loss_banks"].item(), metrics["train_loss_batch"].item()]

    assert losses(precision) == pytest.approx(
        losses("32-true"), rel=1e-5 if precision == "64-true" else 0.05
    )


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimensions": 0}, "dimensions must be a whole number of at least 1"),
        ({"num_negatives": 1.5}, "num_negatives must be a whole number of at least 1"),
        ({"num_negatives": True}, "num_negatives must be a whole number of at least 1"),
        ({"temperature": 0}, "temperature must be a finite number greater than 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"momentum": math.nan}, r"momentum must be in \[0, 1\)"),
        ({"negatives": "hard"}, "negatives must be 'class' or 'instance'"),
        ({"layer": ""}, "layer must be the role of a layer"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"CRD: {message}"):
        CRD(**arguments)


def test_needs_what_it_is_built_from() -> None:
    case = CASE()
    with pytest.raises(UserError, match="CRD needs a teacher"):
        built()(case.student, None, case.batch)
    with pytest.raises(UserError, match="CRD has no embeddings yet"):
        CRD()(case.student, case.teacher, case.batch)
    probe = Probe(Output(torch.zeros(2, 5), {LAYER: torch.zeros(2, 4)}))
    with pytest.raises(
        UserError, match="must give the number of rows as source_samples"
    ):
        CRD().build(probe, probe)
    with pytest.raises(UserError, match="CRD needs a teacher"):
        CRD().build(probe, None)
    CRD(in_batch=True).build(probe, probe)  # remembers nothing


def test_counts_its_own_samples_with_banks_and_once_without() -> None:
    batch = CASE().batch
    placeholder = replace(batch, placeholder=True)
    with_banks, in_batch = built(), built(in_batch=True)
    assert int(weight_of(with_banks.mean_over, batch)) == 6
    assert int(weight_of(with_banks.mean_over, placeholder)) == 0
    assert int(weight_of(in_batch.mean_over, batch)) == 1
    assert int(weight_of(in_batch.mean_over, placeholder)) == 1


def test_one_label_per_sample() -> None:
    pixels = Spec("pixels", source_samples=20, target_shape=(4, 4))
    probe = Probe(Output(torch.zeros(2, 5), {LAYER: torch.zeros(2, 4)}), pixels)
    with pytest.raises(
        UserError, match=r"CRD needs one label per sample; .* shape \[4, 4\]"
    ):
        CRD().build(probe, probe)


def test_the_temperature_is_that_of_the_convention() -> None:
    made = [
        CRD(),
        CRD(convention="benchmark"),
        CRD(in_batch=True),
        CRD(temperature=0.2),
    ]
    assert [loss.temperature for loss in made] == [0.1, 0.07, 0.07, 0.2]


def test_the_papers_value_by_hand() -> None:
    """One negative of two rows, at right angles to both: h = 1 / (1 + 1 / 2)."""
    similarity, log_z = (
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor(-math.log(2.0), dtype=torch.float64),
    )
    assert nce(similarity, log_z).item() == pytest.approx(
        -math.log(2 / 3) - math.log(1 / 3)
    )
