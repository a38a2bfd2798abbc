"""Access to the transformers library, which is optional and slow to import.

`library` imports such packages on first use only. The protocols describe the parts of their
objects that this package uses, and every failure becomes a one-line UserError.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlparse

import torch
from torch import nn

from kd_lightning.errors import UserError

HubOption = bool | str | torch.dtype
"""An option of `from_pretrained`."""


class Encoding(Protocol):
    """The part of `tokenizers.Encoding` in use: one tokenized sample."""

    ids: list[int]
    type_ids: list[int]
    overflowing: Sequence[Encoding]


class BackendTokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` in use."""

    def no_padding(self) -> None:
        """Return each sample at its own length."""

    def enable_truncation(self, max_length: int) -> None:
        """Truncate samples, special tokens included."""

    def no_truncation(self) -> None:
        """Return whole samples."""

    def encode_batch(
        self, input: Sequence[str | tuple[str, ...]], add_special_tokens: bool = True
    ) -> list[Encoding]:
        """Tokenize texts or pairs of texts."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""

    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
        """The id of each token."""

    def to_str(self) -> str:
        """The tokenizer as JSON."""


class HubTokenizer(Protocol):
    """The part of `transformers.PreTrainedTokenizerFast` in use."""

    backend_tokenizer: BackendTokenizer
    model_max_length: int
    model_input_names: Sequence[str]
    pad_token_id: int | None
    eos_token_id: int | None
    sep_token_id: int | None
    mask_token_id: int | None
    mask_token: str | None
    unk_token: str
    all_special_tokens: Sequence[str]

    def get_vocab(self) -> dict[str, int]:
        """The id of each token."""


class EncoderConfig(Protocol):
    """The part of `transformers.PreTrainedConfig` in use."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the configuration, as a copy."""


class Encoder(nn.Module):
    """The part of `transformers.PreTrainedModel` in use; a type for annotations only."""

    config: EncoderConfig
    pooler: nn.Module | None

    def set_attn_implementation(self, implementation: str) -> None:
        """Select a registered attention function by name."""


class LanguageModelConfig(Protocol):
    """The part of a configuration of transformers in use."""

    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the configuration, as a copy."""


class HubLanguageModel(nn.Module):
    """The part of a language model of transformers in use; a type for annotations only."""

    config: LanguageModelConfig
    base_model: nn.Module

    def get_output_embeddings(self) -> nn.Module:
        """The layer that computes logits."""
        raise NotImplementedError


class _Factory(Protocol):
    """An Auto class of transformers."""

    def from_pretrained(self, name: str, **options: HubOption) -> Any:
        """Load what the class makes from a folder or the hub."""


def library(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        UserError: if the package is not installed.
    """
    try:
        module = import_module(name)
    except ImportError as error:
        raise UserError(
            f"this needs the package {name}; pip install 'kd_lightning[text]'"
        ) from error
    if name == "transformers":
        # Its progress bars and advice would bury our own output.
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return module


def vocabulary_sha256(vocabulary: Mapping[str, int]) -> str:
    """One checksum over all tokens and their ids."""
    # Dictionaries of equal vocabularies can differ in their order.
    ordered = sorted(vocabulary.items(), key=lambda item: (item[1], item[0]))
    lines = [f"{number} {token}" for token, number in ordered]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pretrained_tokenizer(name: str, gguf_file: str | None = None) -> HubTokenizer:
    """Load the tokenizer of a model on the hub or of a folder; see `from_pretrained`.

    Args:
        name: name of a model on the hub, or path of a folder.
        gguf_file: the GGUF file of the model that holds the tokenizer, if one does.

    Raises:
        UserError: if it cannot be loaded, or if it has no vocabulary.
    """
    options = gguf_options(gguf_file)
    tokenizer: HubTokenizer = from_pretrained("AutoTokenizer", name, **options)
    # Without a vocabulary file, the library returns a tokenizer of special tokens only.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise UserError(
            f"{name} has no vocabulary; give a folder with tokenizer.json or vocab.txt"
        )
    return tokenizer


def gguf_options(gguf_file: str | None) -> dict[str, HubOption]:
    """The options of `from_pretrained` that read a GGUF file.

    Args:
        gguf_file: its name in the folder of the model; `None`: the model has other files.

    Raises:
        UserError: if the packages that read such files are not installed.
    """
    if gguf_file is None:
        return {}
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise UserError(
                f"reading {gguf_file} needs the package {package}; "
                "pip install 'kd_lightning[gguf]'"
            )
    return {"gguf_file": gguf_file}


def from_pretrained(kind: str, name: str, **options: HubOption) -> Any:
    """Call `transformers.KIND.from_pretrained(name)`.

    The sources are a folder, the local cache of the hub, and the hub, in this order. Code that
    comes with a model is never run.

    Args:
        kind: a class of transformers, such as `AutoTokenizer` or `AutoModel`.
        name: name of a model on the hub, or path of a folder.
        options: passed to `from_pretrained`.

    Raises:
        UserError: if no source has the model, or if it cannot be read.
    """
    factory: _Factory = getattr(library("transformers"), kind)
    # By default, the library asks at the terminal whether to run the code of a model.
    options = {"trust_remote_code": False, **options}
    what = kind.removeprefix("Auto").lower()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load(factory, str(folder), f"{folder} has no readable {what}", options)
    if _looks_like_path(name):
        raise UserError(
            f"there is no folder {name} with a transformers model; "
            "give an existing folder, or a name on the hub"
        )
    # The cache first: asking the hub for a newer version takes seconds, and fails offline.
    try:
        return factory.from_pretrained(name, local_files_only=True, **options)
    except Exception:
        # The library raises errors of many kinds, and the cache may lack any of the files. If the
        # hub can be reached, its answer counts.
        if not reachable():
            raise UserError(
                f"the model {name} is not in the cache of the hub and there is no network; "
                "give the path of its folder (config.json, model.safetensors, tokenizer.json)"
            ) from None
    return _load(factory, name, f"the hub has no readable {what} of {name}", options)


def _looks_like_path(name: str) -> bool:
    """Whether a name cannot be one on the hub, where names are `model` or `owner/model`."""
    is_absolute = Path(name).expanduser().is_absolute()
    return is_absolute or name.startswith((".", "~")) or name.count("/") > 1


def reachable() -> bool:
    """Whether the hub's name can be resolved: a quick test for a network."""
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def _load(
    factory: _Factory,
    name: str,
    problem: str,
    options: Mapping[str, HubOption],
) -> Any:
    """Load a model or tokenizer; a UserError names the problem and the library's reason."""
    try:
        return factory.from_pretrained(name, **options)
    except Exception as error:
        # The library's messages run over many lines; the first one names the cause.
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise UserError(f"{problem}: {reason}") from error
