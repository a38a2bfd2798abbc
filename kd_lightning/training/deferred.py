"""A network that is built only when the Trainer asks for it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kd_lightning.types import Inputs


class DeferredNetwork(nn.Module):
    """Stands for a network until Lightning's `configure_model` hook builds it.

    Give it to a module in place of a network that is too large to build on the CPU first. The
    Trainer calls the hook under its strategy's and its precision's contexts, so that the weights
    are created on the right device, in the right type, and sharded if the strategy shards them.

    Example:
        >>> student = DeferredNetwork(lambda: nn.Linear(64, 10))
        >>> student.build()
        Linear(in_features=64, out_features=10, bias=True)

    Args:
        factory: builds the network; called once.
    """

    def __init__(self, factory: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.factory = factory

    def build(self) -> nn.Module:
        """Build the network."""
        return self.factory()

    def forward(self, inputs: Inputs) -> Tensor:
        """Not possible before the network is built.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "the network is not built yet; call the module's configure_model()"
        )
