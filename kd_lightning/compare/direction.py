"""Which values of a metric are better."""

from __future__ import annotations

HIGHER = ("accuracy", "agreement", "recall", "f1", "map", "miou", "r2")
"""Parts of the names of metrics of which the highest value is the best."""

LOWER = (
    *("errors", "error", "nll", "kl", "loss", "perplexity", "mse", "rmse", "mae"),
    *("parameters", "flops", "bytes", "latency"),
)
"""Parts of the names of metrics of which the lowest value is the best."""

COSTS = ("parameters", "flops", "bytes", "latency")
"""Parts of the names of metrics that belong to a network, not to a seed."""


def sign_of(metric: str) -> int | None:
    """The factor that makes lower values of a metric the better ones.

    Args:
        metric: such as `test_accuracy`.

    Returns:
        -1 if higher is better, 1 if lower is better, None if the name does not tell.
    """
    words = metric.split("_")
    # Errors first: the name of an error may also hold a word such as agreement.
    if any(word in LOWER for word in words):
        return 1
    if any(word in HIGHER for word in words):
        return -1
    return None


def is_cost(metric: str) -> bool:
    """Whether a metric is a cost of the network, such as its parameters.

    Args:
        metric: its name.
    """
    return any(word in COSTS for word in metric.split("_"))
