"""Runs networks on batches and captures features from named layers with forward hooks.

Without tapped layers no hook is placed, so plain networks run at full speed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_lightning.errors import UserError
from kd_lightning.types import Batch, Inputs, Output

Rows = Callable[[Tensor, Batch], Tensor]
"""Turns a network's output for a batch into one row per predicted position; see `Task.rows`."""

ForwardHook = Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], object], None]

LOGIT_NAMES = ("logits", "out")
"""Under which names networks return logits: transformers say `logits`, torchvision's `out`."""


@runtime_checkable
class HasLogits(Protocol):
    """An output object with logits, such as those of the transformers library."""

    logits: Tensor


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """The submodule of that name.

    Raises:
        UserError: if there is none; the message lists the nearest names.
    """
    modules = dict(network.named_modules())
    modules.pop("", None)
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.3) or list(modules)[:5]
        raise UserError(
            f"{type(network).__name__} has no layer {name!r}; the nearest names are "
            f"{', '.join(near)}"
        )
    found: nn.Module = modules[name]
    return found


class Taps:
    """Captures the outputs of named layers while the network runs.

    Args:
        network: any nn.Module.
        layers: module name for each role; `NAME:input` captures the module's input instead.
        roles: the roles to capture; only these layers get a hook.

    Raises:
        UserError: if a role has no layer, or a layer does not exist.
    """

    def __init__(self, network: nn.Module, layers: Mapping[str, str], roles: set[str]) -> None:
        self.features: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._versions: dict[str, int] = {}
        self._copied: set[str] = set()
        for role in sorted(roles):
            self._tap(network, layers, role)
        if roles:
            # An in-place activation would overwrite the feature captured before it.
            for layer in network.modules():
                if getattr(layer, "inplace", False):
                    setattr(layer, "inplace", False)  # noqa: B010

    def _tap(self, network: nn.Module, layers: Mapping[str, str], role: str) -> None:
        if role not in layers:
            known = ", ".join(layers) or "none"
            raise UserError(
                f"{type(network).__name__}: no layer is named for the role {role!r}; "
                f"named roles: {known}"
            )
        name, colon, suffix = layers[role].partition(":")
        if colon and suffix != "input":
            raise UserError(
                f"the layer {layers[role]!r} of the role {role!r}: only ':input' may follow the "
                "name of a layer"
            )
        module = find_layer(network, name)
        self.modules[role] = module
        hook = self._hook(role, takes_input=bool(colon))
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _hook(self, role: str, takes_input: bool) -> ForwardHook:
        def capture(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: object
        ) -> None:
            feature: object = output
            if takes_input:
                feature = args[0] if args else next(iter(kwargs.values()))
            if isinstance(feature, Tensor) and not feature.is_inference():
                if role in self._copied:
                    feature = feature.clone()
                self._versions[role] = feature._version
            self.features[role] = feature  # type: ignore[assignment]

        return capture

    def take(self) -> dict[str, Tensor]:
        """Hand over the features of the last forward pass, so that none outlives its step."""
        features = self.features
        self.features = {}
        return features

    def overwritten(self) -> bool:
        """Whether the network wrote over a captured feature (`x += y`).

        From then on a copy of such a feature is captured, so the caller runs the network again.
        """
        changed = set()
        for role, version in self._versions.items():
            if self.features[role]._version != version:
                changed.add(role)
        self._copied |= changed
        self._versions = {}
        return bool(changed)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def as_logits(output: object) -> Tensor:
    """Logits from what a network returned.

    Args:
        output: a tensor; a mapping or object with `logits` (or torchvision's `out`); or a tuple
            that starts with one of these.

    Raises:
        UserError: if there are no logits in it.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output:
        return as_logits(output[0])
    if isinstance(output, Mapping):
        for name in LOGIT_NAMES:
            logits = output.get(name)
            if isinstance(logits, Tensor):
                return logits
    elif isinstance(output, HasLogits) and isinstance(output.logits, Tensor):
        return output.logits
    raise UserError(f"the network returned {type(output).__name__}, which holds no logits")


def run_network(network: nn.Module, inputs: Inputs, taps: Taps | None = None) -> Output:
    """One forward pass, with the logits in the shape in which the network returned them.

    Args:
        network: any nn.Module that returns logits; see `as_logits`.
        inputs: a tensor, or a mapping that becomes keyword arguments.
        taps: captures features during the pass.
    """
    raw = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    # The first pass, on blank samples before training, finds layers that are written over.
    if taps is not None and taps.overwritten():
        return run_network(network, inputs, taps)
    features = taps.take() if taps is not None else {}
    return Output(as_logits(raw), features)


def run_on_batch(network: nn.Module, batch: Batch, rows: Rows, taps: Taps | None = None) -> Output:
    """One forward pass of a student on a batch, with one row of logits per predicted position."""
    output = run_network(network, batch.inputs, taps)
    output.logits = rows(output.logits, batch)
    return output


def run_teacher_on_batch(
    network: nn.Module, batch: Batch, rows: Rows, taps: Taps | None = None
) -> Output:
    """The same for a teacher, which may read another encoding of the samples."""
    inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
    output = run_network(network, inputs, taps)
    output.logits = rows(output.logits, batch)
    return output
