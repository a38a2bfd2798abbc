"""Running networks and losses before training, without a trace in either."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Undo what the block does to modules and random number generators.

    Buffers (statistics of batch normalization, memory banks) get back their values in the same
    tensors, and the modules' attributes (modes, counters) their objects. Parameters and gradients
    are not saved: the block must not train.

    Args:
        modules: that the block runs, with all their submodules.
        device: whose generator is restored, besides those of the CPU.
    """
    saved: list[_SavedModule] = []
    for module in modules:
        saved.extend(_SavedModule(each) for each in module.modules())
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        # Without a list, torch would save the generators of all GPUs of the machine.
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for each in saved:
            each.restore()


class _SavedModule:
    """The buffers and attributes of one module, without its submodules."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.buffers: dict[str, tuple[Tensor, Tensor] | None] = {}
        for name, buffer in module._buffers.items():
            if buffer is None:
                self.buffers[name] = None
            else:
                self.buffers[name] = (buffer, buffer.clone())

    def restore(self) -> None:
        """Undo what changed since."""
        attributes = vars(self.module)
        attributes.clear()
        attributes.update(self.attributes)
        own = self.module._buffers
        own.clear()
        for name, saved in self.buffers.items():
            if saved is None:
                own[name] = None
                continue
            buffer, value = saved
            # In place: other objects may refer to this tensor.
            with torch.no_grad():
                buffer.copy_(value)
            own[name] = buffer
