"""What a Lightning module with a learner needs to be built, loaded and copied in Python."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning.pytorch as pl
import torch

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.masking import missing_secret
from kd_lightning.training import lightning_compat
from kd_lightning.training.learner import Learner


class ModuleOfLearner(pl.LightningModule):
    """A module around one learner. A subclass implements `attach` and the steps.

    Attributes:
        role: what the network is called in arguments and in checkpoints.
        learner: holds the network.
    """

    role: ClassVar[str]
    learner: Learner

    def attach(self, datamodule: DataModule, stage: str = "fit") -> None:
        """Prepare for this data; calling it again changes nothing."""
        raise NotImplementedError

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, *args: Any, **kwargs: Any
    ) -> Self:
        """Build the module of a checkpoint again, with its trained weights.

        A checkpoint of `kd fit` describes its network. One of a module that was built in Python
        does not: give the network, as in `load_from_checkpoint(path, student=MyNet())`.

        Args:
            checkpoint_path: path of the checkpoint.
            args: see LightningModule.
            kwargs: replace the arguments of the checkpoint.

        Raises:
            UserError: if the network is missing, or an argument is a secret, which checkpoints do
                not store.
        """
        secret = _missing_secret(checkpoint_path, kwargs)
        if secret is not None:
            raise UserError(
                f"{checkpoint_path} was made with the secret {secret!r}, which checkpoints do not "
                f"store; build that part in Python and give it, as in "
                f"{cls.__name__}.load_from_checkpoint(PATH, {cls.role}=NETWORK)"
            )
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            # Python's own error for an argument that was not given, as the network is not.
            if "missing" not in str(error):
                raise
            if cls.role not in kwargs:
                raise UserError(
                    f"{checkpoint_path} does not describe its network, which was built in Python; "
                    f"give it: {cls.__name__}.load_from_checkpoint(PATH, {cls.role}=NETWORK)"
                ) from error
        arguments = {**cls.arguments_of_loaded(), **kwargs}
        return super().load_from_checkpoint(checkpoint_path, *args, **arguments)

    @classmethod
    def arguments_of_loaded(cls) -> dict[str, object]:
        """Arguments of a loaded module beside its network, unless the caller gives others."""
        return {}

    def configure_callbacks(self) -> list[pl.Callback]:
        """No callbacks; prepares early for those that average weights.

        Raises:
            UserError: if such a callback runs without a datamodule of kd_lightning.
        """
        # Callbacks that average weights copy the module before its own setup; its losses' adapters
        # and its teacher must be there by then.
        datamodule = lightning_compat.datamodule_of(self.trainer)
        fits = self.trainer.state.fn == "fit" and lightning_compat.averages_weights(
            self.trainer
        )
        if fits and not isinstance(datamodule, DataModule):
            raise UserError(
                "callbacks that average weights need a datamodule of kd_lightning, such as one "
                "derived from kd_lightning.data.TensorDataModule"
            )
        if fits and isinstance(datamodule, DataModule) and self.learner.is_built:
            self.attach(datamodule)
        return []


def _missing_secret(path: Any, given: Mapping[str, Any]) -> str | None:
    """The first secret that the arguments in a checkpoint lack, beside those that are given."""
    # Lightning also accepts addresses and open files, and reports what it cannot read.
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    try:
        # Mapped into memory, so that no weights are read.
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError):
        return None
    needed = {}
    for name, value in (content.get("hyper_parameters") or {}).items():
        if name not in given:
            needed[name] = value
    return missing_secret(needed)
