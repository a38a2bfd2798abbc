"""The content of a training checkpoint, in the same format since version 0.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias, TypedDict, cast

from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.masking import masked_config
from kd_lightning.networks import SelfContained
from kd_lightning.training.optimizers import SchedulerFactory, takes_total_steps
from kd_lightning.values import Value, Values
from kd_lightning.weights import KEY, plain

StateHookArgument: TypeAlias = "dict[str, Value] | bool | list[str]"
"""What torch passes to hooks on state dicts beside the state: metadata, strictness, lists of keys."""

EPOCH_SUMS = "kd_epoch_sums"
"""The checkpoint's entry for the loss sums of an epoch that is not finished."""


class Described(TypedDict):
    """The checkpoint's entry `kd_lightning`: what it takes to build the network again.

    Attributes:
        role: prefix of the network's weights in `state_dict`.
        network: the network's `class_path` and `init_args`; `None` if it was built in Python.
        without_files: arguments that replace those that name files.
        spec: of the data.
        data: what the datamodule needs to read data the same way; `None` if nothing.
        teacher: where the teacher's knowledge comes from.
    """

    role: str
    network: dict[str, Value] | None
    without_files: dict[str, Value]
    spec: dict[str, Value] | None
    data: dict[str, object] | None
    teacher: list[dict[str, object]]


Checkpoint: TypeAlias = "dict[str, Value | Tensor | Mapping[str, Tensor] | Described]"
"""A training checkpoint by the names of its entries."""


def self_contained_arguments(network: nn.Module) -> dict[str, Value]:
    """Arguments that rebuild the network without the files it was first built from."""
    if isinstance(network, SelfContained):
        return cast(dict[str, Value], plain(network.without_files()))
    return {}


def with_arguments(
    described: Values | None, arguments: Values
) -> dict[str, Value] | None:
    """A network's `class_path` and `init_args` with some arguments replaced."""
    if described is None:
        return None
    config: dict[str, Value] = dict(plain(described))
    # A tokenizer's folder, for example, may not exist where the checkpoint is read.
    if arguments:
        own = cast(Values, config.get("init_args") or {})
        config["init_args"] = {**own, **arguments}
    return config


def mask_secrets(checkpoint: Checkpoint) -> None:
    """Remove secrets from what describes a run in its checkpoint, as from its config.yaml.

    A checkpoint is shared even more often than a run's folder.

    Args:
        checkpoint: the content that Lightning will write; changed in place.
    """
    for name in ("hyper_parameters", "datamodule_hyper_parameters"):
        if name in checkpoint:
            checkpoint[name] = masked_config(checkpoint[name])
    described = cast(Described, checkpoint[KEY])
    # The data's own state is no config: a vocabulary may name anything.
    for part in ("network", "without_files", "teacher"):
        described[part] = masked_config(described[part])


def rename_in_checkpoints(module: nn.Module, prefixes: Mapping[str, str]) -> None:
    """Give parameters other names in a module's state dict than they have in the module.

    The names in checkpoints so stay the same if the module's structure changes.

    Args:
        module: its `state_dict` and `load_state_dict` translate from now on.
        prefixes: for each prefix in the module the prefix in checkpoints.
    """

    to_module = {saved: own for own, saved in prefixes.items()}
    # Partial objects of module-level functions can be pickled, as spawned processes need it.
    module.register_state_dict_post_hook(partial(_rename_hook, dict(prefixes)))
    module.register_load_state_dict_pre_hook(partial(_rename_hook, to_module))


def _rename_hook(
    prefixes: Mapping[str, str],
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    *_: StateHookArgument,
) -> None:
    """Rename the keys of a state dict; `prefix` is the module's place in a larger one."""
    within = {}
    for old, new in prefixes.items():
        within[prefix + old] = prefix + new
    _rename(state, within)


def _rename(state: dict[str, Tensor], prefixes: Mapping[str, str]) -> None:
    """Rename the keys of a state dict in place, in the same order."""
    renamed = {}
    for key, value in state.items():
        for old, new in prefixes.items():
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        renamed[key] = value
    state.clear()
    state.update(renamed)


def check_loss_state(saved: Mapping[str, Tensor], losses: nn.ModuleDict) -> None:
    """Refuse to resume with other losses than the checkpoint's.

    Args:
        saved: the checkpoint's `state_dict`.
        losses: of the run that resumes.

    Raises:
        UserError: if the adapters or memories of the losses differ.
    """
    saved_shapes = {}
    for key, value in saved.items():
        if key.startswith("losses."):
            saved_shapes[key.removeprefix("losses.")] = value.shape
    own_shapes = {}
    for key, value in losses.state_dict().items():
        own_shapes[key] = value.shape
    # A key of one side only has no shape on the other.
    for key in sorted({*own_shapes, *saved_shapes}):
        if own_shapes.get(key) != saved_shapes.get(key):
            raise UserError(
                f"the checkpoint was trained with other losses ({key} differs): resume with the "
                "config that made it, or start a new run from its weights with --model.init_from"
            )


def check_schedule(
    states: Sequence[Values],
    scheduler: SchedulerFactory | None,
    total_steps: int,
) -> None:
    """Refuse to resume a schedule over a fixed number of steps with another number.

    Args:
        states: the checkpoint's `lr_schedulers`.
        scheduler: of the run that resumes.
        total_steps: of the run that resumes.

    Raises:
        UserError: if the number of steps changed.
    """
    if scheduler is None or not takes_total_steps(scheduler):
        return
    # Schedules that depend on the number of steps store it; others have no such entry.
    for state in states:
        planned = state.get("total_steps", total_steps)
        if planned != total_steps:
            raise UserError(
                f"the checkpoint's learning rates were planned for {planned} steps, this run has "
                f"{total_steps}: resume with the same --trainer.max_epochs, batches and devices, "
                "or start a new run from its weights with --model.init_from"
            )
