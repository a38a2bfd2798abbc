"""What is taken from the transformers library, imported only when it is asked for, its many errors in one line."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kd_lightning.errors import UserError


def library(name: str) -> Any:
    """The package of that name.

    Raises:
        UserError: where it is not installed.
    """
    try:
        module = import_module(name)
    except ImportError as error:
        raise UserError(
            f"this needs the package {name}; pip install 'kd_lightning[text]'"
        ) from error
    if name == "transformers":
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return module


def vocabulary_sha256(vocabulary: Mapping[str, int]) -> str:
    """One checksum over all tokens and their numbers."""
    ordered = sorted(vocabulary.items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(
        "\n".join(f"{number} {token}" for token, number in ordered).encode()
    ).hexdigest()


def _reachable() -> bool:
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def pretrained_tokenizer(name: str) -> Any:
    """The tokenizer of a model on the hub, or of a folder; see `from_pretrained`.

    Raises:
        UserError: also where there are no files of a tokenizer: the library then makes one that knows no word.
    """
    tokenizer = from_pretrained("AutoTokenizer", name)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{name} holds no vocabulary of a tokenizer (tokenizer.json or vocab.txt)")
    return tokenizer


def from_pretrained(kind: str, name: str, **options: Any) -> Any:
    """`transformers.KIND.from_pretrained(name)`: from a folder, from the hub's cache, or from the hub itself.

    No code of the model's own is run, and weights are read from safetensors alone.

    Args:
        kind: such as `AutoTokenizer` or `AutoModel`.
        name: of a model on the hub, or the path of a folder.
        options: of `from_pretrained`.

    Raises:
        UserError: where neither has it, or what is there cannot be read.
    """
    factory = getattr(library("transformers"), kind)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _read(
            factory, str(folder), f"{folder} holds no {kind.removeprefix('Auto').lower()}", options
        )
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(
            f"there is no folder {name} with a transformers model; give a folder, or a name on the hub"
        )
    try:
        return factory.from_pretrained(name, local_files_only=True, **options)
    except Exception:  # whatever is missing in the cache; the hub itself is asked next, and its answer is what counts
        if not _reachable():
            raise UserError(
                f"the model {name} is not in the cache of the hub and there is no network; give the path of its folder "
                "(config.json, model.safetensors, tokenizer.json)"
            ) from None
    return _read(
        factory, name, f"the hub has no {kind.removeprefix('Auto').lower()} of {name}", options
    )


def _read(factory: Any, name: str, problem: str, options: dict[str, Any]) -> Any:
    try:
        return factory.from_pretrained(name, **options)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{problem} that can be read: {reason}") from error
