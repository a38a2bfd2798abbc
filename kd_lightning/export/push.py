"""Uploads an export to a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from kd_lightning.errors import UserError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` in use."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object:
        """Create a repository, unless it exists."""

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        commit_message: str,
    ) -> object:
        """Upload all files of a folder in one commit."""


def find_hub(repository: str) -> Hub:
    """The hub, with the token of this machine.

    Args:
        repository: that will be written to.

    Raises:
        UserError: if there is no token, or the name is not one of a repository.
    """
    if _REPOSITORY.fullmatch(repository) is None:
        raise UserError(
            f"--push {repository}: not the name of a repository; give OWNER/NAME"
        )
    try:
        from huggingface_hub import HfApi, get_token
    except ModuleNotFoundError as error:
        raise UserError(
            "--push needs the package huggingface_hub; install it with "
            "pip install 'kd_lightning[hub]'"
        ) from error
    token = get_token()
    if token is None:
        raise UserError(
            "--push needs a token of the Hugging Face hub; run hf auth login, or set "
            "HF_TOKEN"
        )
    hub: Hub = HfApi(token=token)
    return hub


def push(hub: Hub, repository: str, folder: Path) -> None:
    """Upload a folder; a repository that does not exist becomes a private one.

    Args:
        hub: that is written to.
        repository: its name, `OWNER/NAME`.
        folder: of the export.

    Raises:
        UserError: if the hub refuses; the folder stays.
    """
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload an export of kd_lightning",
        )
    except Exception as error:
        # Of the network, of the token, or of the hub.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--push {repository}: the upload failed ({reason}); the export is in "
            f"{folder}"
        ) from error
