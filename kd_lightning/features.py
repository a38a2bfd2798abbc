"""Features are captured by forward hooks from named layers of any network; tapping nothing costs nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.types import Inputs, Output


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """The submodule of that name; a wrong name raises UserError that lists the nearest ones."""
    modules: dict[str, nn.Module] = dict(network.named_modules())
    modules.pop("", None)
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.3) or list(modules)[:5]
        raise UserError(
            f"{type(network).__name__} has no layer {name!r}; the nearest names are {', '.join(near)}"
        )
    return modules[name]


class Taps:
    """Captures the outputs of named layers while the network runs.

    Args:
        network: any nn.Module that returns logits, or a mapping or object that holds `logits`.
        layers: module name for each role; a trailing `:input` captures what goes into the module instead.
        roles: the roles that are wanted; hooks are placed on those alone.

    Raises:
        UserError: where a role has no layer, or a layer does not exist.
    """

    def __init__(self, network: nn.Module, layers: Mapping[str, str], roles: set[str]) -> None:
        self.features: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self._versions: dict[str, int] = {}
        self._copied: set[str] = set()
        for role in sorted(roles):
            if role not in layers:
                known = ", ".join(layers) or "none"
                raise UserError(
                    f"{type(network).__name__}: no layer is named for the role {role!r}; named are: {known}"
                )
            name, colon, what = layers[role].partition(":")
            if colon and what != "input":
                raise UserError(
                    f"the layer {layers[role]!r} of the role {role!r}: only ':input' may follow a layer's name"
                )
            module = self.modules[role] = find_layer(network, name)
            module.register_forward_hook(self._hook(role, bool(colon)), with_kwargs=True)
        for layer in network.modules() if roles else ():
            if getattr(layer, "inplace", False):  # it would overwrite what was captured before it
                setattr(layer, "inplace", False)  # noqa: B010

    def _hook(self, role: str, takes_input: bool) -> Callable[[nn.Module, Any, Any, Any], None]:
        def capture(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            feature = (args[0] if args else next(iter(kwargs.values()))) if takes_input else output
            if isinstance(feature, Tensor) and not feature.is_inference():
                feature = feature.clone() if role in self._copied else feature
                self._versions[role] = feature._version
            self.features[role] = feature

        return capture

    def take(self) -> dict[str, Tensor]:
        """The features of the last forward pass, handed over so that none outlives its step."""
        features, self.features = self.features, {}
        return features

    def overwritten(self) -> bool:
        """Whether the network has written over a feature since (`x += y`); the next pass keeps a copy of such a one."""
        changed = {
            role
            for role, version in self._versions.items()
            if self.features[role]._version != version
        }
        self._copied |= changed
        self._versions = {}
        return bool(changed)


def as_logits(output: Any) -> Tensor:
    """Logits from what a network returned: a tensor, a mapping or object with `logits`, or a tuple that starts with them."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output:
        return as_logits(output[0])
    logits = (
        output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    )
    if not isinstance(logits, Tensor):
        raise UserError(f"the network returned {type(output).__name__}, which holds no logits")
    return logits


def run_network(network: nn.Module, inputs: Inputs, taps: Taps | None = None) -> Output:
    """One forward pass; a mapping of inputs becomes keyword arguments."""
    raw = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    if taps and taps.overwritten():  # seen in the first pass, of blank samples before training
        return run_network(network, inputs, taps)
    return Output(as_logits(raw), taps.take() if taps else {})
