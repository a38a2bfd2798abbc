"""Specialists: the agreed distribution against a general solver, and the teachers that use it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.networks import build_network
from kd_lightning.specialists import (
    SpecialistDataModule,
    SpecialistTeacher,
    SubsetTeacher,
)
from kd_lightning.specialists.agreement import (
    active_specialists,
    agreed_log_probs,
    membership,
)
from kd_lightning.teachers import CachedTeacher, ModelTeacher, cache_teacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import CLEAN, Batch
from kd_lightning.weights import load_weights, network_weights, read_file
from tests.specialists import small as files
from tests.training.small import complaint, distillation, mlp, samples, trainer

K, IDS = 7, [[0, 1, 2], [1, 2, 5], [3, 4]]
SURE = 2.0


def opinions(samples: int = 6, seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    """Log-probabilities of a generalist and three disagreeing specialists, and who is active."""
    drawn = torch.Generator().manual_seed(seed)

    def one(classes: int) -> Tensor:
        return (
            SURE * torch.randn(samples, classes, generator=drawn, dtype=torch.float64)
        ).log_softmax(1)

    active = torch.rand(samples, 3, generator=drawn) < 0.7
    active[0], active[1] = False, True
    return one(K), [one(len(ids) + 1) for ids in IDS], active


def objective(
    z: NDArray[np.float64],
    generalist: list[float],
    said: list[list[float]],
    ids: list[list[int]],
) -> float:
    """KL(p_g, q) + sum of KL(p_m, q) for one sample, as in the paper, in sums over classes."""
    largest = max(z)
    total = sum(math.exp(value - largest) for value in z)
    q = [math.exp(value - largest) / total for value in z]
    value = sum(math.exp(p) * (p - math.log(q[j])) for j, p in enumerate(generalist))
    for p_m, known in zip(said, ids, strict=True):
        dustbin = sum(q[j] for j in range(len(q)) if j not in known)
        for p, share in zip(p_m, [*(q[j] for j in known), dustbin], strict=True):
            value += math.exp(p) * (p - math.log(share))
    return value


def slow(generalist: Tensor, said: list[Tensor], active: Tensor) -> list[list[float]]:
    """q of each sample by a general solver without analytic gradients."""
    found = []
    for at, row in enumerate(generalist.tolist()):
        asked = [m for m in range(3) if active[at, m]]
        p_m, ids = [said[m][at].tolist() for m in asked], [IDS[m] for m in asked]
        result = minimize(
            objective,
            np.array(row),
            (row, p_m, ids),
            method="BFGS",
            options={"gtol": 1e-7},
        )
        found.append(torch.tensor(result.x).softmax(0).tolist())
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_slow_solver(seed: int) -> None:
    generalist, said, active = opinions(seed=seed)
    q = agreed_log_probs(generalist, said, IDS, active, tolerance=1e-9).exp()
    assert q.tolist() == [
        pytest.approx(row, abs=2e-6) for row in slow(generalist, said, active)
    ]
    assert q.sum(1).tolist() == pytest.approx([1.0] * len(q))


def test_the_gradient_is_zero_there_and_the_objective_higher_around() -> None:
    """The result is a stationary point for autograd as well."""
    generalist, said, active = opinions(samples=20, seed=3)
    z = agreed_log_probs(
        generalist, said, IDS, active, tolerance=1e-10
    ).requires_grad_()
    q = z.log_softmax(1)
    value = (generalist.exp() * (generalist - q)).sum(1)
    for p, ids, asked in zip(said, IDS, active.T, strict=True):
        others = [j for j in range(K) if j not in ids]
        mapped = torch.cat([q[:, ids], q[:, others].logsumexp(1, keepdim=True)], 1)
        value = value + asked * (p.exp() * (p - mapped)).sum(1)
    [gradient] = torch.autograd.grad(value.sum(), z)
    assert gradient.abs().max() < 1e-9


def test_stops_at_the_tolerance_or_the_iteration_limit() -> None:
    generalist, said, active = opinions(samples=20, seed=4)
    exact = agreed_log_probs(generalist, said, IDS, active, tolerance=1e-12).exp()
    early: list[dict[str, Any]] = [
        {"tolerance": 1e-7},
        {"tolerance": 1e-2},
        {"tolerance": 1e-12, "max_iterations": 1},
    ]
    errors = [
        float(
            (agreed_log_probs(generalist, said, IDS, active, **options).exp() - exact)
            .abs()
            .sum(1)
            .max()
        )
        for options in early
    ]
    assert errors[0] < 1e-5 < errors[1] < errors[2]


def test_a_sample_does_not_depend_on_the_others() -> None:
    generalist, said, active = opinions(samples=12, seed=5)
    together = agreed_log_probs(generalist, said, IDS, active)
    for at in range(12):
        rows = slice(at, at + 1)
        alone = agreed_log_probs(
            generalist[rows], [p[rows] for p in said], IDS, active[rows]
        )
        assert torch.allclose(alone, together[rows], rtol=0, atol=1e-12)


def test_no_specialists_or_agreeing_ones_give_the_generalist() -> None:
    generalist, said, active = opinions()
    nobody = agreed_log_probs(generalist, said, IDS, torch.zeros_like(active))
    assert torch.allclose(nobody, generalist, rtol=0, atol=1e-12)
    same = []
    for ids in IDS:
        others = [j for j in range(K) if j not in ids]
        same.append(
            torch.cat(
                [generalist[:, ids], generalist[:, others].logsumexp(1, keepdim=True)],
                1,
            )
        )
    agreed = agreed_log_probs(generalist, same, IDS, torch.ones_like(active))
    assert torch.allclose(agreed, generalist, rtol=0, atol=1e-9)


def test_precision_is_double_for_all_dtypes() -> None:
    generalist, said, active = opinions(samples=30, seed=6)
    exact = agreed_log_probs(generalist, said, IDS, active, tolerance=1e-9)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(
            "medium"
        )  # products in bfloat16 would never reach the tolerance
        single = agreed_log_probs(
            generalist.float(), [p.float() for p in said], IDS, active, tolerance=1e-9
        )
    finally:
        torch.set_float32_matmul_precision(before)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double().exp(), exact.exp(), atol=1e-5)


def test_zero_probabilities_give_a_finite_result() -> None:
    generalist = torch.tensor([[0.0, -1e4, -1e4, -1e4, -1e4, -1e4, -1e4]]).log_softmax(
        1
    )
    said = [
        torch.tensor([[-1e4, 0.0, -1e4, -1e4]]),
        torch.tensor([[-1e4, -1e4, -1e4, 0.0]]),
        torch.tensor([[0.0, -1e4, -1e4]]),
    ]
    q = agreed_log_probs(generalist, said, IDS, torch.ones(1, 3, dtype=torch.bool))
    assert bool(q.isfinite().all())
    assert q.exp().sum().item() == pytest.approx(1.0)


def test_active_specialists() -> None:
    logits = torch.tensor(
        [[9.0, 0, 0, 0, 0, 8, 0], [0, 9.0, 0, 8, 0, 0, 0], [0, 0, 0, 0, 0, 0, 9.0]]
    )
    known = membership(IDS, K)
    assert active_specialists(logits, known).tolist() == [
        [True, False, False],
        [True, True, False],
        [False] * 3,
    ]
    assert active_specialists(logits, known, n=2).tolist()[:2] == [
        [True, True, False],
        [True, True, True],
    ]
    assert active_specialists(logits, known, n=99).tolist() == [[True] * 3] * 3


# -- teachers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def team(tmp_path: Path) -> dict[str, Any]:
    """Arguments of SpecialistTeacher: a generalist and two specialists."""
    members = [
        files.specialist(tmp_path, [1, 4, 7], 2.0, seed=1),
        files.specialist(tmp_path, [0, 4, 8, 9], 0.7, seed=2),
    ]
    return {"generalist": files.generalist(tmp_path), "specialists": members}


def logits_of(path: str, batch: Batch) -> Tensor:
    content = read_file(path, "it")
    network = build_network(content["kd_lightning"]["network"])
    load_weights(network, network_weights(content), path)
    with torch.no_grad():
        logits: Tensor = network.eval()(batch.inputs)
    return logits


def test_specialist_teacher(team: dict[str, Any], data: DigitsDataModule) -> None:
    teacher = SpecialistTeacher(**team, n=2, tolerance=1e-9)
    teacher.prepare(data)
    batch = samples(data, "test", 40)
    q = teacher(batch).log_probs().exp()
    generalist = logits_of(team["generalist"], batch).double().log_softmax(1)
    ids, oversampling = [[1, 4, 7], [0, 4, 8, 9]], [2.0, 0.7]
    for at in range(0, 40, 8):
        likely = generalist[at].topk(2).indices.tolist()
        asked = [m for m in range(2) if set(ids[m]) & set(likely)]
        said = []
        for m in asked:
            logits = logits_of(team["specialists"][m], batch)[at].double()
            logits[-1] += math.log(oversampling[m])
            said.append(logits.log_softmax(0).tolist())
        row = generalist[at].tolist()
        found = minimize(
            objective,
            np.array(row),
            (row, said, [ids[m] for m in asked]),
            method="BFGS",
            options={"gtol": 1e-7},
        )
        assert q[at].tolist() == pytest.approx(
            torch.tensor(found.x).softmax(0).tolist(), abs=1e-5
        )
    assert not torch.allclose(q.double(), generalist.exp(), atol=1e-2)
    assert [Path(str(source["path"])).name for source in teacher.sources()] == [
        "generalist0.ckpt",
        "specialist1.ckpt",
        "specialist2.ckpt",
    ]


def test_students_learn_from_the_team_and_caches_replay_it(
    team: dict[str, Any], data: DigitsDataModule, tmp_path: Path
) -> None:
    teacher = SpecialistTeacher(**team)
    module = distillation(teacher=teacher)
    trainer(limit_train_batches=2).fit(module, datamodule=data)
    assert not any("teacher" in key for key in module.state_dict())
    cache_teacher(SpecialistTeacher(**team), data, tmp_path / "cache")
    replay = CachedTeacher(str(tmp_path / "cache"))
    replay.prepare(data)
    batch = samples(data, "train", 64)
    assert torch.allclose(
        replay(batch).log_probs(), teacher(batch).log_probs(), atol=1e-5
    )


def test_invalid_teams_are_errors(
    team: dict[str, Any], data: DigitsDataModule, tmp_path: Path
) -> None:
    generalist, members = team["generalist"], team["specialists"]
    assert "has no specialists" in complaint(lambda: SpecialistTeacher(generalist, []))
    assert "n and max_iterations must be at least 1" in complaint(
        lambda: SpecialistTeacher(generalist, members, n=0)
    )
    swapped = SpecialistTeacher(generalist, [generalist])
    assert "generalist0.ckpt is not a specialist's checkpoint" in complaint(
        lambda: swapped.prepare(data)
    )
    spec = data.spec
    renamed = replace(spec, classes=tuple(f"digit {name}" for name in spec.classes))
    other = files.save(
        tmp_path / "renamed.ckpt", files.specialist_spec(renamed, [1, 2]), 5
    )
    message = complaint(lambda: SpecialistTeacher(generalist, [other]).prepare(data))
    assert "calls class 0 'digit 1', the data digits calls it '1'" in message
    more = replace(spec, num_classes=12, classes=tuple(str(at) for at in range(12)))
    other = files.save(tmp_path / "more.ckpt", files.specialist_spec(more, [1, 11]), 5)
    message = complaint(lambda: SpecialistTeacher(generalist, [other]).prepare(data))
    assert (
        message == f"the specialist {other} knows a class 11; the data has 10 classes"
    )


# -- soft targets for a specialist ------------------------------------------------------------------------------------


@pytest.fixture
def share(team: dict[str, Any]) -> SpecialistDataModule:
    return SpecialistDataModule(
        DigitsDataModule(batch_size=64),
        team["generalist"],
        specialists=3,
        classes_each=4,
    )


def test_subset_teacher_sums_other_classes(
    team: dict[str, Any], share: SpecialistDataModule
) -> None:
    teacher = SubsetTeacher(checkpoint=team["generalist"])
    teacher.prepare(share)
    source = share.source("test")
    batch = source.batch(torch.arange(20), CLEAN)
    generalist = logits_of(team["generalist"], batch).double().softmax(1).tolist()
    assert share.spec.specialist is not None
    ids, oversampling = share.class_ids, share.spec.specialist["oversampling"]
    for row, found in zip(
        generalist, teacher(batch).log_probs().exp().tolist(), strict=True
    ):
        rest = sum(p for at, p in enumerate(row) if at not in ids) / oversampling
        expected = [*(row[at] for at in ids), rest]
        assert found == pytest.approx([p / sum(expected) for p in expected], rel=1e-5)
    assert teacher.sources()[0]["path"] == str(Path(team["generalist"]).resolve())


def test_a_specialist_learns_from_a_subset_teacher(
    team: dict[str, Any], share: SpecialistDataModule
) -> None:
    student = mlp(classes=5)
    module: DistillationModule = distillation(
        teacher=SubsetTeacher(checkpoint=team["generalist"]), student=student
    )
    run = trainer(limit_train_batches=2)
    run.fit(module, datamodule=share)
    assert run.callback_metrics["train_loss_kd"] > 0


def test_invalid_subset_teachers_are_errors(
    team: dict[str, Any], data: DigitsDataModule
) -> None:
    assert "SubsetTeacher: give either model.teacher.checkpoint" in complaint(
        SubsetTeacher
    )
    both = complaint(
        lambda: SubsetTeacher(team["generalist"], ModelTeacher(network=mlp()))
    )
    assert "SubsetTeacher: give" in both
    message = complaint(lambda: SubsetTeacher(team["generalist"]).prepare(data))
    assert (
        message
        == "SubsetTeacher needs a specialist's data; use kd_lightning.specialists.SpecialistDataModule"
    )


def test_a_subset_of_a_top_k_cache_is_refused(
    team: dict[str, Any], share: SpecialistDataModule, tmp_path: Path
) -> None:
    """The classes beyond the K largest would get a share that the teacher never gave them."""
    cache_teacher(
        ModelTeacher(team["generalist"]), share.data, tmp_path / "cache", top_k=3
    )
    teacher = SubsetTeacher(teacher=CachedTeacher(str(tmp_path / "cache")))
    message = complaint(lambda: teacher.prepare(share))
    assert "SubsetTeacher needs every logit of its teacher" in message
