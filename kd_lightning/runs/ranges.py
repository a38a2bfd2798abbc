"""The ranges of the numbers in a config, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from kd_lightning.errors import UserError
from kd_lightning.limits import MAX_VIEWS
from kd_lightning.runs.options import TrainerSettings
from kd_lightning.values import Value
from kd_lightning.yaml_files import YamlValue

MAX_NAME_BYTES = 255
"""The longest name of a file or folder on the usual file systems."""


@dataclass(frozen=True)
class Range:
    """An interval of valid numbers.

    Attributes:
        low: smallest valid number.
        high: largest valid number.
        without_low: whether `low` itself is invalid.
        without_high: whether `high` itself is invalid.
        also: a number outside the interval that is valid, such as -1 for "unlimited".
        subject: what the number is, if its option alone would not tell.
    """

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False
    also: float | None = None
    subject: str = ""

    def accepts(self, number: float) -> bool:
        """Whether a number is valid; NaN never is."""
        if number == self.also:
            return True
        above = number >= self.low
        if self.without_low:
            above = number > self.low
        below = number <= self.high
        if self.without_high:
            below = number < self.high
        return above and below

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            word = "above" if self.without_low else "at least"
            parts.append(f"{word} {self.low:g}")
        if self.high < math.inf:
            word = "below" if self.without_high else "at most"
            parts.append(f"{word} {self.high:g}")
        text = " and ".join(parts)
        if self.also is None:
            return text
        return f"{text}, or {self.also:g}"


_COUNT = Range(low=1)
_NOT_NEGATIVE = Range(low=0)
_LEARNING_RATE = Range(low=0, subject="the learning rate")

OPTIONS = {
    "seed_everything": Range(low=0, high=2**32 - 1),
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.gradient_clip_val": _NOT_NEGATIVE,
    "trainer.limit_predict_batches": _NOT_NEGATIVE,
    "trainer.limit_test_batches": _NOT_NEGATIVE,
    "trainer.limit_train_batches": Range(low=0, without_low=True),
    "trainer.limit_val_batches": _NOT_NEGATIVE,
    "trainer.log_every_n_steps": _COUNT,
    "trainer.max_epochs": Range(low=0, also=-1),
    "trainer.max_steps": Range(low=0, also=-1),
    "trainer.min_epochs": _NOT_NEGATIVE,
    "trainer.min_steps": _NOT_NEGATIVE,
    "trainer.num_nodes": _COUNT,
    "trainer.num_sanity_val_steps": Range(low=0, also=-1),
    "trainer.overfit_batches": _NOT_NEGATIVE,
    "trainer.reload_dataloaders_every_n_epochs": _NOT_NEGATIVE,
    "trainer.val_check_interval": Range(low=0, without_low=True),
}
"""The ranges of options, by their full names. The Trainer would do nothing, or end in an error."""

ARGUMENTS = {
    "base_lr": _LEARNING_RATE,
    "batch_size": Range(low=1, high=10**9),
    "dropout": Range(low=0, high=1, without_high=True),
    "eval_batch_size": Range(low=1, high=10**9),
    "lr": _LEARNING_RATE,
    "max_lr": _LEARNING_RATE,
    "momentum": Range(low=0, high=1),
    "pixels": Range(low=1, high=10_000),
    # Beyond, float32 cannot tell the probabilities apart.
    "temperature": Range(low=0, high=1e6, without_low=True),
    "views": Range(low=1, high=MAX_VIEWS),
    "weight": Range(low=0, high=1e12),
    "weight_decay": _NOT_NEGATIVE,
}
"""The ranges of arguments of models, losses, optimizers and data, by the last part of the name."""

_CLASS_PARTS = ("init_args", "dict_kwargs")


def check_config(config: Mapping[str, YamlValue]) -> None:
    """Check every number of a parsed config, and the name of the run.

    All numbers must be finite; OPTIONS and ARGUMENTS give the ranges of some.

    Args:
        config: in builtins.

    Raises:
        UserError: for the first number that is invalid, or an invalid name.
    """
    for name in ("trainer", "run"):
        section = config.get(name, {})
        if not isinstance(section, dict):
            raise UserError(
                f"{name} must hold keys with values, got {repr(section)[:60]}"
            )
    for number in _numbers(config, keys=(), owner=None):
        _check_number(number)
    run = config.get("run")
    if isinstance(run, dict):
        check_run_name(run.get("name"))


@dataclass(frozen=True)
class _Number:
    """A number in a config.

    Attributes:
        keys: that lead to it, as a user types them.
        owner: the class that it is an argument of, without its module.
        value: of the option.
    """

    keys: tuple[str, ...]
    owner: str | None
    value: float


def _numbers(
    node: Value,
    keys: tuple[str, ...],
    owner: str | None,
) -> Iterator[_Number]:
    """Yield every number of a config."""
    # The name of the class tells the user whose argument is wrong.
    if isinstance(node, Mapping):
        class_path = node.get("class_path")
        if isinstance(class_path, str):
            owner = class_path.rpartition(".")[2]
        for key, value in node.items():
            inner = keys if key in _CLASS_PARTS else (*keys, str(key))
            yield from _numbers(value, inner, owner)
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        for item in node:
            yield from _numbers(item, keys, owner)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield _Number(keys, owner, node)


def _check_number(number: _Number) -> None:
    """Refuse a number that is not finite, or outside the range of its option or argument."""
    option = ".".join(number.keys)
    valid = OPTIONS.get(option)
    # Arguments of other classes may share a name and have another range.
    if valid is None and number.keys[0] in ("model", "data"):
        valid = ARGUMENTS.get(number.keys[-1])
    subject = f"{option} ({number.owner})" if number.owner else option
    value = number.value
    if not _is_finite(value):
        raise UserError(f"{subject} must be a finite number, got {str(value)[:30]}")
    if valid is not None and not valid.accepts(value):
        meaning = f": {valid.subject}" if valid.subject else ""
        raise UserError(f"{subject}{meaning} must be {valid}, got {value:g}")


def _is_finite(value: float) -> bool:
    """Whether a number is finite, and small enough to be compared as a float."""
    # Python's integers have no bound.
    if isinstance(value, int):
        return abs(value) < 2**63
    return math.isfinite(value)


def check_run_name(name: YamlValue) -> None:
    """Check that a run's folder of this name lies below `--run.root`.

    Args:
        name: `--run.name`; `None` if it is derived.

    Raises:
        UserError: if it is empty, absolute, too long, or leaves the folder.
    """
    if not isinstance(name, str):
        return
    parts = name.split("/")
    # An absolute path starts with an empty part.
    if any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        raise UserError(
            f"--run.name must be the name of a folder below --run.root, got {name[:100]!r}; "
            "choose any other folder with --run.dir"
        )
    # A number is appended to a name that exists.
    longest = max(len(part.encode()) for part in parts)
    if longest > MAX_NAME_BYTES - 10:
        raise UserError(
            f"--run.name has {longest} bytes; the name of a folder has at most "
            f"{MAX_NAME_BYTES - 10}"
        )


def check_limits(settings: TrainerSettings, batches: Mapping[str, int]) -> None:
    """Check that the Trainer's fractions select a batch, and that validation takes place.

    Lightning ends in a traceback otherwise.

    Args:
        settings: arguments of the Trainer.
        batches: number of batches by stage ("train", "val" or "test"), before any limit.

    Raises:
        UserError: for a fraction that selects no batch, or an interval longer than an epoch.
    """
    for stage, count in batches.items():
        name = f"limit_{stage}_batches"
        limit = settings.get(name)
        # 0 switches a stage off, and a whole number counts batches.
        if not isinstance(limit, float) or limit <= 0 or count == 0:
            continue
        if int(limit * count) == 0:
            raise UserError(
                f"trainer.{name}={limit:g} selects none of the {count} batches; use at least "
                f"{1 / count:.2g}, or a whole number of batches"
            )
    interval = settings.get("val_check_interval")
    # Without check_val_every_n_epoch, the interval counts batches of all epochs.
    in_epoch = settings.get("check_val_every_n_epoch") is not None
    is_count = isinstance(interval, int) and not isinstance(interval, bool)
    count = batches.get("train", 0)
    if in_epoch and is_count and count and cast(int, interval) > count:
        raise UserError(
            f"trainer.val_check_interval={interval} is more than the {count} batches of an epoch; "
            "use a fraction, or trainer.check_val_every_n_epoch"
        )
