"""Runs networks on batches and captures features from named layers with forward hooks.

Without tapped layers no hook is placed, so plain networks run at full speed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from kd_lightning.errors import UserError
from kd_lightning.outputs import MOST_NAMED, PLAIN_READING, Reading, as_logits
from kd_lightning.randomness import run_seed, seed_from
from kd_lightning.row_chunks import ChunkedOutput, SplitNetwork
from kd_lightning.types import Batch, Inputs, Output

Rows = Callable[[Tensor, Batch], Tensor]
"""Turns a network's output for a batch into one row per predicted position; see `Task.rows`."""


def find_layer(
    network: nn.Module,
    name: str,
    reading: Reading = PLAIN_READING,
) -> nn.Module:
    """The submodule of that name; a negative index counts from the end, as in `stage1.-1.bn2`.

    Args:
        network: any.
        name: as `named_modules` gives it.
        reading: how messages name the network.

    Raises:
        UserError: if there is none; the message lists the nearest names.
    """
    modules = dict(network.named_modules())
    # The network itself has the empty name.
    modules.pop("", None)
    name = _with_positive_indices(network, name)
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=5, cutoff=0.3)
        if not near:
            near = list(modules)[:5]
        raise UserError(
            f"{reading.owner} {type(network).__name__} has no layer {name!r}; the nearest names "
            f"are {', '.join(near)}"
        )
    layer: nn.Module = modules[name]
    return layer


def _with_positive_indices(network: nn.Module, name: str) -> str:
    """The name with each negative index into a list of modules replaced by the position it means."""
    parts = []
    module: nn.Module | None = network
    for part in name.split("."):
        if part.startswith("-") and isinstance(module, nn.Sequential | nn.ModuleList):
            index = part.removeprefix("-")
            if index.isdecimal() and 1 <= int(index) <= len(module):
                part = str(len(module) - int(index))
        children = dict(module.named_children()) if module is not None else {}
        module = children.get(part)
        parts.append(part)
    return ".".join(parts)


def candidate_layers(network: nn.Module) -> list[str]:
    """Names of layers that a role may stand for: the outermost ones, but more than a single one."""
    depth = 1
    while True:
        names = []
        deepest = 0
        for name, _ in network.named_modules():
            level = name.count(".") + 1 if name else 0
            deepest = max(deepest, level)
            if level == depth:
                names.append(name)
        if len(names) > 1 or depth >= deepest:
            return names
        depth += 1


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule then returns to its own mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def create_lazy_weights(network: nn.Module, inputs: Inputs, owner: str) -> None:
    """Give lazy layers (`nn.LazyLinear`, ...) their weights, which are a function of the seed.

    Args:
        network: nothing happens if it has no lazy layer without weights.
        inputs: of a blank batch.
        owner: what messages call the network.

    Raises:
        UserError: if the network cannot read the inputs.
    """
    if not has_lazy_weights(network):
        return
    try:
        # Initial values must not depend on what was drawn before.
        with torch.random.fork_rng(devices=[]), evaluating(network), torch.no_grad():
            torch.manual_seed(seed_from(run_seed(), "lazy layers"))
            network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    except Exception as error:
        raise UserError(
            f"{owner} has lazy layers, but cannot read the data: {error}"
        ) from error
    if has_lazy_weights(network):
        raise UserError(
            f"{owner} has lazy layers that it does not run in evaluation; give them sizes"
        )


def has_lazy_weights(network: nn.Module) -> bool:
    """Whether a layer waits for its first inputs to create its weights."""
    tensors = [*network.parameters(), *network.buffers()]
    return any(is_lazy(tensor) for tensor in tensors)


class _Capture:
    """The hook of one layer.

    An object and not a closure, so that a deep copy of the network feeds the copy of its taps.
    """

    def __init__(self, taps: Taps, role: str, takes_input: bool) -> None:
        self.taps = taps
        self.role = role
        self.takes_input = takes_input

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor,
    ) -> None:
        feature = output
        if self.takes_input:
            # The first argument, by position or by name.
            feature = args[0] if args else next(iter(kwargs.values()))
        self.taps.capture(self.role, feature)


class Taps:
    """Captures the outputs of named layers while the network runs.

    Args:
        network: any nn.Module.
        layers: module name for each role; `NAME:input` captures the module's input instead.
        roles: the roles to capture; only these layers get a hook.
        reading: how messages name the network and its options.

    Raises:
        UserError: if a role has no layer, or a layer does not exist.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, str],
        roles: set[str],
        reading: Reading = PLAIN_READING,
    ) -> None:
        self._network = network
        self._layers = dict(layers)
        self._reading = reading
        self.features: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._versions: dict[str, int] = {}
        self._copied: set[str] = set()
        for role in sorted(roles):
            self._tap(role)
        if roles:
            # An in-place activation would overwrite the feature captured before it.
            for layer in network.modules():
                if getattr(layer, "inplace", False):
                    setattr(layer, "inplace", False)  # noqa: B010

    def _tap(self, role: str) -> None:
        """Place the hook of one role."""
        network = self._network
        if role not in self._layers:
            raise UserError(self._missing(role))
        layer = self._layers[role]
        name, colon, suffix = layer.partition(":")
        if colon and suffix != "input":
            raise UserError(
                f"{self._reading.owner}: the layer {layer!r} of the role {role!r}: only ':input' "
                "may follow the name of a layer"
            )
        module = find_layer(network, name, self._reading)
        self.modules[role] = module
        hook = _Capture(self, role, takes_input=bool(colon))
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _missing(self, role: str) -> str:
        """What to do about a role without a layer."""
        known = ", ".join(self._layers) or "none"
        candidates = ", ".join(candidate_layers(self._network)[:MOST_NAMED]) or "none"
        setting = self._reading.setting("layers", f"'{{{role}: MODULE}}'")
        return (
            f"{self._reading.owner} {type(self._network).__name__}: a loss reads the role {role!r}, "
            f"which no layer is named for (named roles: {known}); set {setting} with a module "
            f"such as {candidates}"
        )

    def capture(self, role: str, feature: Tensor | tuple[Tensor, ...]) -> None:
        """Note the feature of a role during a forward pass.

        Args:
            role: of the layer.
            feature: a tensor of any shape; a loss that reads something else refuses it.
        """
        # Tensors of inference mode count no versions.
        if isinstance(feature, Tensor) and not feature.is_inference():
            if role in self._copied:
                feature = feature.clone()
            # Torch counts the writes to a tensor; see `overwritten`.
            self._versions[role] = feature._version
        self.features[role] = feature  # type: ignore[assignment]

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
            # A head that only training runs may be missing in evaluation.
            if role in self.features and self.features[role]._version != version:
                changed.add(role)
        self._copied |= changed
        self._versions = {}
        return bool(changed)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def run_network(
    network: nn.Module,
    inputs: Inputs,
    taps: Taps | None = None,
    reading: Reading = PLAIN_READING,
) -> Output:
    """One forward pass, with the logits in the shape in which the network returned them.

    Args:
        network: any nn.Module that returns logits; see `as_logits`.
        inputs: a tensor, or a mapping that becomes keyword arguments.
        taps: captures features during the pass.
        reading: which entry of the network's output holds the logits.
    """
    raw = network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
    # The first pass, on blank samples before training, finds layers that are written over.
    if taps is not None and taps.overwritten():
        return run_network(network, inputs, taps, reading)
    features = taps.take() if taps is not None else {}
    return Output(as_logits(raw, reading), features)


def run_on_batch(
    network: nn.Module,
    batch: Batch,
    rows: Rows,
    taps: Taps | None = None,
    reading: Reading = PLAIN_READING,
) -> Output:
    """One forward pass of a student on a batch, with one row of logits per predicted position.

    Args:
        network: see `run_network`.
        batch: of B samples with N positions.
        rows: from the network's own shape to `(N, K)`.
        taps: captures features during the pass.
        reading: which entry of the network's output holds the logits.
    """
    output = run_network(network, batch.inputs, taps, reading)
    output.logits = rows(output.logits, batch)
    return output


def run_in_chunks(
    network: nn.Module,
    inputs: Inputs,
    batch: Batch,
    rows: Rows,
    row_chunk: int,
    taps: Taps | None = None,
) -> ChunkedOutput:
    """One forward pass up to the last states; the logits are computed when they are read.

    Args:
        network: a `SplitNetwork`.
        inputs: that become keyword arguments.
        batch: of B samples with N positions.
        rows: from `(B, *S, H)` to `(N, H)`.
        row_chunk: rows whose logits are in memory together.
        taps: captures features during the pass.
    """
    assert isinstance(inputs, Mapping), "language models read inputs by name"
    assert isinstance(network, SplitNetwork), "check_head() comes first"
    # Not a method of its own: hooks and compiled code belong to the call of the module.
    states = cast(nn.Module, network)(**inputs, states_only=True)
    features = taps.take() if taps is not None else {}
    return ChunkedOutput(rows(states, batch), network.head, row_chunk, features)


def run_teacher_on_batch(
    network: nn.Module,
    batch: Batch,
    rows: Rows,
    taps: Taps | None = None,
    reading: Reading = PLAIN_READING,
) -> Output:
    """The same for a teacher, which may read another encoding of the samples.

    Args:
        network: see `run_network`.
        batch: of B samples with N positions.
        rows: from the network's own shape to `(N, K)`.
        taps: captures features during the pass.
        reading: which entry of the network's output holds the logits.
    """
    inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
    output = run_network(network, inputs, taps, reading)
    output.logits = rows(output.logits, batch)
    return output
