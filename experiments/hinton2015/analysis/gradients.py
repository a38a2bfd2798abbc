"""Compares the gradients of hard and soft targets (Hinton et al. 2015, sections 1 and 2.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from kd_lightning.analyses.grids import coordinates
from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.features import run_network
from kd_lightning.losses.kd import KD, soft_target_kl
from kd_lightning.types import CLEAN, Batch, Output

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps logits `(B, K)`, the teacher's logits `(B, K)` and targets `(B,)` to the mean loss."""


def hard(logits: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the hard targets.

    Args:
        logits: `(B, K)`.
        teacher: the teacher's logits `(B, K)`; unused.
        target: int64 `(B,)`.
    """
    return F.cross_entropy(logits, target)


def soft(temperature: float) -> Objective:
    """Return the loss of soft targets at a temperature."""

    def loss(logits: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        student_log_probs = torch.log_softmax(logits / temperature, -1)
        teacher_log_probs = torch.log_softmax(teacher / temperature, -1)
        return soft_target_kl(student_log_probs, teacher_log_probs, temperature)

    return loss


def spread(
    network: nn.Module,
    inputs: Tensor,
    teacher: Tensor,
    target: Tensor,
    loss: Objective,
    chunk: int = 64,
) -> tuple[float, float]:
    r"""Measure how much the gradient varies between cases.

    The variance $\mathrm{tr}\,\mathrm{Cov}(g) / |E g|^2$ is relative to the mean gradient, because
    the scale of a loss is arbitrary. It is the batch size beyond which more cases help little.

    Args:
        network: the network, in eval mode.
        inputs: of N cases, `(N, ...)`.
        teacher: the teacher's logits `(N, K)`.
        target: int64 `(N,)`.
        loss: the mean loss over cases.
        chunk: cases whose gradients are in memory at once.

    Returns:
        The relative variance, and the norm $|E g|$ of the mean gradient.
    """
    weights = {
        name: parameter.detach() for name, parameter in network.named_parameters()
    }

    def mean_loss(
        weights: dict[str, Tensor], x: Tensor, v: Tensor, y: Tensor
    ) -> Tensor:
        logits = functional_call(network, weights, (x,))
        return loss(logits, v, y)

    def squared_norm_of_case(x: Tensor, v: Tensor, y: Tensor) -> Tensor:
        # `vmap` passes one case; the network reads batches.
        gradients = grad(mean_loss)(weights, x[None], v[None], y[None])
        squares = [gradient.square().sum() for gradient in gradients.values()]
        return torch.stack(squares).sum()

    # The gradients of all cases at once would not fit into memory.
    total = 0.0
    for start in range(0, len(inputs), chunk):
        part = slice(start, start + chunk)
        norms_of_cases = vmap(squared_norm_of_case)
        squared_norms = norms_of_cases(inputs[part], teacher[part], target[part])
        total += float(squared_norms.double().sum())

    squared_norm_of_mean = 0.0
    mean_gradients = grad(mean_loss)(weights, inputs, teacher, target)
    for gradient in mean_gradients.values():
        squared_norm_of_mean += float(gradient.double().square().sum())

    n = len(inputs)
    # E|g|^2 - |E g|^2, with the sample variance's factor n / (n - 1).
    mean_squared_norm = total / n
    relative_variance = (
        mean_squared_norm - squared_norm_of_mean
    ) / squared_norm_of_mean
    sample_variance = relative_variance * n / (n - 1)
    return sample_variance, squared_norm_of_mean**0.5


def variance(
    runs: Runs,
    output: Path,
    teacher: str,
    student: str,
    temperatures: list[float],
    cases: int = 1000,
) -> list[Row]:
    """Measure the gradient's variance for hard and soft targets, before and after training.

    Args:
        runs: the finished runs.
        output: unused.
        teacher: the run of the teachers.
        student: the run of the students, with the same seeds.
        temperatures: the temperatures of the soft targets.
        cases: how many training cases to use, from the first, without augmentation.

    Returns:
        Rows `gradient_variance_at_...` and `gradient_norm_at_...` per loss.
    """
    losses: dict[str, Objective] = {"hard": hard}
    for temperature in temperatures:
        losses[f"soft, T={temperature:g}"] = soft(temperature)

    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs[student]:
        source = run.datamodule().source("train")
        batch = source.batch(torch.arange(cases), CLEAN)
        with torch.inference_mode():
            teacher_network = _teacher_of(run, runs[teacher]).network()
            teacher_logits = run_network(teacher_network, batch.inputs).logits.clone()
        inputs = batch.inputs
        assert isinstance(inputs, Tensor)
        networks = {"first_weights": _untrained(run), "last_weights": run.network()}
        for stage, network in networks.items():
            for name, loss in losses.items():
                # Clones are ordinary tensors; grad does not accept those of inference mode.
                relative_variance, norm = spread(
                    network,
                    inputs.clone(),
                    teacher_logits.clone(),
                    batch.target.clone(),
                    loss,
                )
                values[name, f"gradient_variance_at_{stage}"].append(relative_variance)
                values[name, f"gradient_norm_at_{stage}"].append(norm)
    rows = []
    for (name, metric), numbers in values.items():
        rows.append(Row(name, metric, numbers))
    return rows


def _teacher_of(student: Finished, teachers: Sequence[Finished]) -> Finished:
    """The teacher with the student's seed; the first teacher if there is none."""
    for teacher in teachers:
        if teacher.seed == student.seed:
            return teacher
    return teachers[0]


def _untrained(run: Finished) -> nn.Module:
    """The run's network with new initial weights, drawn with the run's seed."""
    network = run.network()
    # The same seed as in training, although the draws differ: any fresh weights will do.
    torch.manual_seed(run.seed)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    return network


def high_temperature_limit(
    runs: Runs, output: Path, teacher: str, student: str, temperatures: list[float]
) -> list[Row]:
    r"""Measure how far the gradient of soft targets is from that of logit matching.

    The gradient of logit matching is $(z_i - v_i) / K$, with zero-mean logits. By section 2.1, the
    relative error falls as $\max|z| / T$. Writes limit.png.

    Args:
        runs: the finished runs.
        output: folder of the results.
        teacher: the run of the teachers.
        student: the run of the students, with the same seeds; their test logits are used.
        temperatures: the temperatures at which the gradients are compared.

    Returns:
        A row `relative_error_to_the_limit` per temperature, and a row `largest_magnitude`.
    """
    errors: dict[float, list[float]] = {temperature: [] for temperature in temperatures}
    magnitudes = []
    for run in runs[student]:
        z = _centered_logits(run)
        v = _centered_logits(_teacher_of(run, runs[teacher]))
        all_logits = torch.cat([z, v])
        magnitudes.append(float(all_logits.abs().max()))
        # The loss is a mean over samples, so its gradient has a factor 1 / N too.
        samples, classes = z.shape
        limit = (z - v) / classes / samples
        for temperature in temperatures:
            gradient = _kd_gradient(z, v, temperature)
            distance = (gradient - limit).norm()
            errors[temperature].append(float(distance / limit.norm()))
    _plot_limit(errors, max(magnitudes), output / "limit.png")

    rows = []
    for temperature, values in errors.items():
        name = f"gradient at T={temperature:g}"
        rows.append(Row(name, "relative_error_to_the_limit", values))
    rows.append(Row("logits", "largest_magnitude", magnitudes))
    return rows


def _centered_logits(run: Finished) -> Tensor:
    """Test logits `(N, K)` with mean 0 per sample, float64."""
    logits = run.predictions("test")["logits"].double()
    return logits - logits.mean(1, keepdim=True)


def _kd_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The gradient of the KD loss by the student's logits; all tensors are `(N, K)`."""
    logits = student.clone().requires_grad_()
    n = len(logits)
    # KD reads logits only, so the batch's content does not matter.
    target = torch.zeros(n, dtype=torch.int64)
    batch = Batch(torch.zeros(n, 1), target, torch.arange(n))
    loss = KD(temperature)(Output(logits), Output(teacher), batch)
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


def _plot_limit(errors: dict[float, list[float]], magnitude: float, path: Path) -> None:
    """Relative errors against the temperature: one line per seed, and the expected decrease."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    temperatures = sorted(errors)
    # From one list of seeds per temperature to one curve per seed.
    by_temperature = [errors[temperature] for temperature in temperatures]
    curves = zip(*by_temperature, strict=True)
    for curve in curves:
        axes.loglog(temperatures, curve, "o-", color="C0", alpha=0.6)
    expected = [magnitude / temperature for temperature in temperatures]
    axes.loglog(
        temperatures, expected, color="black", linestyle="dashed", label="max|z| / T"
    )
    axes.set_xlabel("temperature")
    axes.set_ylabel("relative error of the gradient")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def highest_rate(
    runs: Runs,
    output: Path,
    arms: dict[str, str],
    key: str = "lr",
    at_most: float = 2000,
) -> list[Row]:
    """Find the highest learning rate at which each seed still trains.

    Args:
        runs: the finished runs.
        output: unused.
        arms: for each name in the results, the name of a run with a grid over learning rates.
        key: the grid's key that holds the learning rate.
        at_most: the number of test errors up to which a run counts as trained.

    Returns:
        One row `highest_rate_that_trains` per arm, over the seeds that train at some rate.
    """
    rows = []
    for label, arm in arms.items():
        highest: dict[int, float] = {}
        for name, group in runs.items():
            if not name.startswith(f"{arm} "):
                continue
            rate = float(coordinates(name)[key])
            for run in group:
                # A run that diverged has no test errors.
                if run.metrics.get("test_errors", float("inf")) <= at_most:
                    highest_so_far = highest.get(run.seed, rate)
                    highest[run.seed] = max(rate, highest_so_far)
        if highest:
            values = [highest[seed] for seed in sorted(highest)]
            rows.append(Row(label, "highest_rate_that_trains", values))
    return rows
