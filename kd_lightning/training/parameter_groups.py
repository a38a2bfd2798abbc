"""Settings of the optimizer for some of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypedDict

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from kd_lightning.errors import UserError
from kd_lightning.losses.base import is_number

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Kind = Literal["bias", "norm", "losses"]


class GroupOptions(TypedDict, total=False):
    """A parameter group as torch's optimizers take it."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


@dataclass
class ParameterGroup:
    """Parameters that the optimizer treats differently: `model.parameter_groups` lists them.

    No weight decay on biases and normalization layers, and a smaller rate for the losses' adapters:

        parameter_groups:
          - {kinds: [bias, norm], weight_decay: 0.0}
          - {kinds: [losses], lr: 0.001}

    A parameter belongs to the first group that matches it.

    Attributes:
        kinds: "bias": names that end so; "norm": parameters of normalization layers; "losses":
            adapters of the losses.
        names: patterns of names as checkpoints have them, such as `student.head.*` or `losses.at.*`.
        lr: the learning rate of the group. A scheduler with `max_lr` needs a list there.
        weight_decay: of the group.
    """

    kinds: list[Kind] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if not self.kinds and not self.names:
            raise UserError("model.parameter_groups: each group needs kinds or names")
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if value is None:
                continue
            if not is_number(value) or value < 0:
                raise UserError(
                    f"model.parameter_groups: {name} must be a number of at least 0, got {value}"
                )
        if self.lr is None and self.weight_decay is None:
            raise UserError(
                "model.parameter_groups: each group needs lr or weight_decay"
            )

    def matches(self, name: str, in_norm: bool) -> bool:
        """Whether a parameter belongs to the group.

        Args:
            name: of the parameter in checkpoints.
            in_norm: whether it belongs to a normalization layer.
        """
        if "norm" in self.kinds and in_norm:
            return True
        if "bias" in self.kinds and name.endswith("bias"):
            return True
        if "losses" in self.kinds and name.startswith(("losses.", "peer_losses.")):
            return True
        return any(fnmatchcase(name, pattern) for pattern in self.names)

    def options(self, params: list[nn.Parameter]) -> GroupOptions:
        """The group of these parameters, as optimizers take it."""
        options = GroupOptions(params=params)
        if self.lr is not None:
            options["lr"] = self.lr
        if self.weight_decay is not None:
            options["weight_decay"] = self.weight_decay
        return options


def trainable(modules: dict[str, nn.Module]) -> dict[str, tuple[nn.Parameter, bool]]:
    """The parameters that require gradients, and whether each is of a normalization layer.

    Args:
        modules: by the prefix of their parameters' names.
    """
    named: dict[str, tuple[nn.Parameter, bool]] = {}
    for prefix, module in modules.items():
        in_norms = _ids_in_norms(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                in_norm = id(parameter) in in_norms
                named[f"{prefix}.{name}"] = (parameter, in_norm)
    return named


def _ids_in_norms(module: nn.Module) -> set[int]:
    """The identities of the parameters of normalization layers; `==` would compare values."""
    ids = set()
    for layer in module.modules():
        if isinstance(layer, NORMS):
            for parameter in layer.parameters(recurse=False):
                ids.add(id(parameter))
    return ids


def parameters_in_groups(
    modules: dict[str, nn.Module], groups: Sequence[ParameterGroup]
) -> list[nn.Parameter] | list[GroupOptions]:
    """What an optimizer receives: the parameters, divided into groups if there are any.

    Args:
        modules: by the prefix of their parameters' names.
        groups: all other parameters come first, in a group of their own.

    Raises:
        UserError: if a group matches no parameter.
    """
    named = trainable(modules)
    # A plain list is what every optimizer takes.
    if not groups:
        return [parameter for parameter, _ in named.values()]
    members: list[list[nn.Parameter]] = [[] for _ in groups]
    others = []
    for name, (parameter, in_norm) in named.items():
        for number, group in enumerate(groups):
            # The first match wins, so that a special group can precede a general one.
            if group.matches(name, in_norm):
                members[number].append(parameter)
                break
        else:
            others.append(parameter)
    # A scheduler's list of rates has no entry for an empty group.
    options = [GroupOptions(params=others)] if others else []
    for group, parameters in zip(groups, members, strict=True):
        if not parameters:
            examples = ", ".join(list(named)[:4])
            raise UserError(
                f"model.parameter_groups: no parameter is left for {group.kinds + group.names}; "
                f"parameters are named like {examples}"
            )
        options.append(group.options(parameters))
    return options


def check_groups(optimizer: Optimizer) -> None:
    """Refuse options of a group that the optimizer does not have, which it would ignore.

    Raises:
        UserError: if it has no weight decay.
    """
    for group in optimizer.param_groups:
        if "weight_decay" in group and "weight_decay" not in optimizer.defaults:
            raise UserError(
                f"model.parameter_groups: {type(optimizer).__name__} has no weight_decay"
            )
