"""Creates encoders of the transformers library, and checks that they fit the tokenizer."""

from __future__ import annotations

import contextlib
from typing import Any, TypedDict, cast

import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.hub import (
    Encoder,
    from_pretrained,
    library,
    pretrained_tokenizer,
    vocabulary_sha256,
)


class Tokens(TypedDict, total=False):
    """The vocabulary in the spec of the data, as a mapping; see `kd_lightning.spec.Vocabulary`.

    It is empty if there is no data, or if the data is not text.
    """

    size: int
    pad: int
    max_length: int
    sha256: str


def make_encoder(architecture: dict[str, Any], tokens: Tokens) -> Encoder:
    """Create an encoder with random weights.

    Args:
        architecture: arguments of a configuration of transformers, including `model_type`.
        tokens: the vocabulary in the spec of the data; its size and padding are defaults.

    Raises:
        UserError: if arguments are missing or wrong.
    """
    transformers = library("transformers")
    settings = {
        "vocab_size": tokens.get("size"),
        "pad_token_id": tokens.get("pad", 0),
        **architecture,
    }
    if settings["vocab_size"] is None:
        raise UserError(
            "TransformerClassifier: architecture needs vocab_size; under kd it comes from the data"
        )
    if "model_type" not in settings:
        raise UserError(
            "TransformerClassifier: architecture needs a model_type, such as bert or distilbert"
        )
    try:
        config = transformers.AutoConfig.for_model(**settings)
        return cast(Encoder, transformers.AutoModel.from_config(config))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        # Configurations check their arguments in ways of their own, and some explain over many
        # lines.
        reason = str(error).splitlines()[0]
        raise UserError(f"TransformerClassifier: architecture: {reason}") from error


def load_encoder(name: str) -> Encoder:
    """Load an encoder with its weights from a folder or the hub.

    Raises:
        UserError: if it cannot be loaded, or if some of its weights are missing.
    """
    encoder, report = from_pretrained(
        "AutoModel",
        name,
        use_safetensors=True,
        output_loading_info=True,
        # Weights stored in half precision are still trained in single precision.
        dtype=torch.float32,
    )
    # Models that were pretrained without a pooler lack it, and it is not used here.
    missing: list[str] = []
    for key in report["missing_keys"]:
        if not key.startswith("pooler."):
            missing.append(key)
    if missing:
        raise UserError(
            f"{name} has no {min(missing)!r} for {type(encoder).__name__}; "
            "give a folder with all weights of an encoder"
        )
    return cast(Encoder, encoder)


def check_tokens(pretrained: str | None, encoder: Encoder, tokens: Tokens) -> None:
    """Check that the encoder reads the token ids of the tokenizer.

    Args:
        pretrained: name or folder of the encoder, if its weights are pretrained.
        encoder: the encoder.
        tokens: the vocabulary in the spec of the data; empty: there is nothing to check.

    Raises:
        UserError: if the vocabularies differ, or if the samples can be too long.
    """
    if not tokens:
        return
    size = encoder.config.vocab_size
    if tokens["size"] > size:
        raise UserError(
            f"the tokenizer has {tokens['size']:,} tokens, but the encoder "
            f"{pretrained or 'of the architecture'} has {size:,}; use the encoder's own tokenizer, "
            "kd_lightning.data.PretrainedTokenizer with the same name"
        )
    if pretrained is not None:
        check_vocabulary(pretrained, tokens)
    # Too long a sample would fail in the embedding of positions, in the middle of training.
    limit = _length_limit(encoder)
    if 0 < limit < tokens["max_length"]:
        raise UserError(
            f"the encoder reads at most {limit} tokens, but the tokenizer returns up to "
            f"{tokens['max_length']}; set its max_length to {limit}"
        )


def check_vocabulary(
    pretrained: str,
    tokens: Tokens,
    gguf_file: str | None = None,
) -> None:
    """Refuse data whose tokenizer has another vocabulary than a pretrained model's.

    Args:
        pretrained: name or folder of the model.
        tokens: the vocabulary in the spec of the data.
        gguf_file: the GGUF file that holds the model's tokenizer, if one does.

    Raises:
        UserError: if the vocabularies differ.
    """
    try:
        tokenizer = pretrained_tokenizer(pretrained, gguf_file)
    except UserError:
        # The vocabulary of a folder without a tokenizer is unknown.
        return
    if tokens["sha256"] != vocabulary_sha256(tokenizer.get_vocab()):
        raise UserError(
            f"the tokenizer has another vocabulary than the model {pretrained}; use the model's "
            "own tokenizer, kd_lightning.data.PretrainedTokenizer (of sentences) or "
            "PretrainedLanguageTokenizer with the same name"
        )


def _length_limit(encoder: Encoder) -> int:
    """The maximum number of tokens per sample; 0 if there is no limit."""
    embeddings = getattr(encoder, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    # In RoBERTa and its relatives, the first position follows the id of the padding token.
    padding: int | None = getattr(positions, "padding_idx", None)
    first = 0 if padding is None else padding + 1
    with contextlib.suppress(AttributeError, NotImplementedError):
        return int(encoder.config.max_position_embeddings) - first
    return 0


def encoder_layers(encoder: Encoder) -> nn.ModuleList:
    """The list of an encoder's layers; empty if there is none, as in ALBERT, which repeats one."""
    # Every architecture gives this list another name, so it is recognized by its length.
    count = int(getattr(encoder.config, "num_hidden_layers", 0))
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return nn.ModuleList()
