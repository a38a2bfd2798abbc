"""Writes checkpoints whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kd_lightning.errors import UserError
from kd_lightning.files import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint only once the new one is on the disk.

    Lightning writes to the folder for temporary files and moves the file from there. Between two
    file systems that is a copy over the only checkpoint, which a kill or a full disk cuts short.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Mapping[str, object] | None = None,
    ) -> None:
        """Write a checkpoint in its own folder under another name, then rename it.

        Args:
            checkpoint: the content.
            path: of the file; addresses such as `s3://...` are left to Lightning.
            storage_options: none are known.

        Raises:
            UserError: if the file cannot be written. The earlier file of that name is untouched.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        # In memory first, because torch's own writer ends the process if the disk is full.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, buffer.getbuffer())
        except OSError as error:
            earlier = "; the earlier one is whole" if target.is_file() else ""
            raise UserError(
                f"the checkpoint {target} cannot be written ({error.strerror}){earlier}; free "
                "space or choose another --run.root, then resume with --ckpt_path"
            ) from error
