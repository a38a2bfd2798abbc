"""Gradients of hard and soft targets (Hinton et al. 2015, sections 1 and 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.features import run_network
from kd_lightning.losses.kd import KD, soft_target_kl
from kd_lightning.types import Batch, Output

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits `(B, K)`, the teacher's logits `(B, K)` and the targets `(B,)` to the mean loss over cases."""


def hard(logits: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def soft(temperature: float) -> Objective:
    def loss(logits: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        student, known = (torch.log_softmax(z / temperature, -1) for z in (logits, teacher))
        return soft_target_kl(student, known, temperature)

    return loss


def spread(
    network: nn.Module,
    inputs: Tensor,
    teacher: Tensor,
    target: Tensor,
    loss: Objective,
    chunk: int = 64,
) -> tuple[float, float]:
    """Variance of the gradient between cases, relative to the mean gradient: $tr Cov(g) / |E g|^2$; and $|E g|$.

    Relative, since the scale of a loss is arbitrary. The number of cases beyond which more of them in a batch help little.

    Args:
        network: in eval mode.
        inputs, teacher, target: of N cases: `(N, ...)`, `(N, K)`, `(N,)`.
        loss: the mean over cases, a scalar.
        chunk: cases whose gradients are in memory at once.
    """
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def of_cases(weights: dict[str, Tensor], x: Tensor, v: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(network, weights, (x,)), v, y)

    def square_of_case(x: Tensor, v: Tensor, y: Tensor) -> Tensor:
        return torch.stack(
            [g.square().sum() for g in grad(of_cases)(weights, x[None], v[None], y[None]).values()]
        ).sum()

    square = sum(
        float(
            vmap(square_of_case)(*(side[at : at + chunk] for side in (inputs, teacher, target)))
            .double()
            .sum()
        )
        for at in range(0, len(inputs), chunk)
    )
    n = len(inputs)
    norm = sum(
        float(g.double().square().sum())
        for g in grad(of_cases)(weights, inputs, teacher, target).values()
    )
    return (square / n - norm) / norm * n / (n - 1), norm**0.5


def variance(
    runs: Runs,
    output: Path,
    teacher: str,
    student: str,
    temperatures: list[float],
    cases: int = 1000,
) -> list[Row]:
    """The gradient's variance between cases, hard against soft, of students at their first weights and at their last.

    Args:
        teacher, student: runs with the same seeds.
        temperatures: of the soft targets.
        cases: training cases, the first of the set; their pixels are not augmented.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for one in runs[student]:
        master = next((t for t in runs[teacher] if t.seed == one.seed), runs[teacher][0])
        batch = one.datamodule().source("train").batch(torch.arange(cases), -1)
        with torch.inference_mode():
            said = run_network(master.network(), batch.inputs).logits.clone()
        last = one.network()
        first = one.network()
        torch.manual_seed(one.seed)
        for module in first.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
        for stage, network in (("first_weights", first), ("last_weights", last)):
            for label, loss in {
                "hard": hard,
                **{f"soft, T={t:g}": soft(t) for t in temperatures},
            }.items():
                variance, norm = spread(
                    network, batch.inputs.clone(), said.clone(), batch.target.clone(), loss
                )
                found.setdefault((label, f"gradient_variance_at_{stage}"), []).append(variance)
                found.setdefault((label, f"gradient_norm_at_{stage}"), []).append(norm)
    return [Row(label, metric, values) for (label, metric), values in found.items()]


def high_temperature_limit(
    runs: Runs, output: Path, teacher: str, student: str, temperatures: list[float]
) -> list[Row]:
    r"""How far the gradient of soft targets is from that of logit matching, $(z_i - v_i) / K$ of zero-mean logits.

    Section 2.1: the relative error falls as $\max|z| / T$. Writes limit.png.

    Args:
        teacher, student: runs with the same seeds; their logits are of the test set.
        temperatures: at which the gradients are compared.
    """
    found: dict[float, list[float]] = {t: [] for t in temperatures}
    largest: list[float] = []
    for one in runs[student]:
        master = next((t for t in runs[teacher] if t.seed == one.seed), runs[teacher][0])
        z, v = (_centred(side) for side in (one, master))
        largest.append(float(torch.cat([z, v]).abs().max()))
        limit = (z - v) / z.shape[1] / len(z)
        for t in temperatures:
            leaf = z.clone().requires_grad_()
            blank = Batch(
                torch.zeros(len(z), 1), torch.zeros(len(z), dtype=torch.int64), torch.arange(len(z))
            )
            (gradient,) = torch.autograd.grad(KD(t)(Output(leaf), Output(v), blank), leaf)
            found[t].append(float((gradient - limit).norm() / limit.norm()))
    _limit_plot(found, max(largest), output / "limit.png")
    rows = [
        Row(f"gradient at T={t:g}", "relative_error_to_the_limit", values)
        for t, values in found.items()
    ]
    return [*rows, Row("logits", "largest_magnitude", largest)]


def _centred(one: Finished) -> Tensor:
    logits = one.predictions("test")["logits"].double()
    return logits - logits.mean(1, keepdim=True)


def _limit_plot(found: dict[float, list[float]], largest: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    at = sorted(found)
    for values in zip(*(found[t] for t in at), strict=True):
        axes.loglog(at, values, "o-", color="C0", alpha=0.6)
    axes.loglog(
        at, [largest / t for t in at], color="black", linestyle="dashed", label="max|z| / T"
    )
    axes.set_xlabel("temperature")
    axes.set_ylabel("relative error of the gradient")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def highest_rate(
    runs: Runs, output: Path, arms: dict[str, str], key: str = "lr", at_most: float = 2000
) -> list[Row]:
    """The highest learning rate at which every seed of an arm still trains.

    Args:
        arms: label -> the run's name before its grid.
        key: the grid's key that holds the rate.
        at_most: test errors up to which a run is said to have trained.
    """
    from kd_lightning.analyses.grids import coordinates

    found = []
    for label, name in arms.items():
        rates: dict[int, list[float]] = {}
        for run, group in runs.items():
            if run.startswith(f"{name} "):
                for one in group:
                    if one.metrics.get("test_errors", float("inf")) <= at_most:
                        rates.setdefault(one.seed, []).append(float(coordinates(run)[key]))
        found.append(
            Row(
                label,
                "highest_rate_that_trains",
                [max(values) for _, values in sorted(rates.items())],
            )
        )
    return [row for row in found if row.values]
