"""Sentence classifiers on the encoders of the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.hub import Encoder
from kd_lightning.models.attention import tap_scores
from kd_lightning.models.embedding import check_shares
from kd_lightning.models.encoders import (
    Tokens,
    check_tokens,
    encoder_layers,
    load_encoder,
    make_encoder,
)
from kd_lightning.models.layer_copy import copy_encoder_layers

_NOT_ARCHITECTURE = ("transformers_version", "architectures", "dtype")
"""Entries of a configuration that are not arguments of a network."""


class TransformerClassifier(nn.Module):
    """An encoder of the transformers library, and a head on the state of its first token.

    Give either `pretrained` or `architecture`. Pretrained weights are read from safetensors files
    only, and code that comes with a model is never run.

    Layers to tap: `states.0` (the embeddings) to `states.N` are the outputs of the layers,
    `(B, L, H)`; `scores.1` to `scores.N` are their attention scores before the softmax,
    `(B, heads, L, L)`. Both include padding, which losses have to mask.

    Args:
        pretrained: name of a model on the hub, such as `bert-base-uncased`, or path of a folder.
        architecture: for random weights: arguments of a configuration of transformers, such as
            `{model_type: bert, hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4,
            intermediate_size: 512}`; the size of the vocabulary comes from the data.
        trainable_layers: train this many of the last layers, and the head; `None`: train
            everything, including the embeddings.
        head: units of a hidden layer with ReLU before the classes; `None`: no hidden layer.
        dropout: dropout before each layer of the head.
        copy_from: checkpoint of a TransformerClassifier of the same width with more layers, to
            start from its embeddings and every k-th layer (Sanh et al. 2019, section 3).
        copy_layers: layers to copy, from 0; default: evenly spaced layers, including the last one.
        num_classes: K; `kd` fills it in from the data.
        spec: description of the data; `kd` fills it in.

    Shapes:
        `input_ids`, `attention_mask` (and `token_type_ids`) int64 `(B, L)`, padded at the end;
        output logits `(B, K)`.

    Raises:
        UserError: if the model cannot be loaded, or if it does not fit the tokenizer or the
            arguments.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        trainable_layers: int | None = None,
        head: int | None = None,
        dropout: float = 0.1,
        copy_from: str | None = None,
        copy_layers: list[int] | None = None,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise UserError(
                "TransformerClassifier: num_classes is missing; under kd it comes from the data"
            )
        check_shares("TransformerClassifier", dropout=dropout)
        tokens: Tokens = (spec or {}).get("vocabulary", {})
        self.encoder = _encoder(pretrained, architecture, tokens)
        config = self.encoder.config
        check_tokens(pretrained, self.encoder, tokens)
        self.typed = int(getattr(config, "type_vocab_size", 0)) > 1
        self.head = _head(int(config.hidden_size), head, dropout, num_classes)
        layers = encoder_layers(self.encoder)
        # The taps pass their input through: they exist for the hooks of losses.
        self.states = _taps(int(config.num_hidden_layers) + 1)
        self.scores = _taps(len(layers) + 1)
        tap_scores(self.encoder, layers, self.scores[1:])
        if not len(layers) and (trainable_layers is not None or copy_from is not None):
            raise UserError(
                f"{type(self.encoder).__name__} has no list of its layers; "
                "remove trainable_layers and copy_from"
            )
        # Before anything is frozen or copied, so that a misfit is reported early.
        self._check_padding()
        if trainable_layers is not None:
            self._freeze_all_but(layers, trainable_layers)
        if copy_from is not None:
            path = Path(copy_from).expanduser()
            copy_encoder_layers(path, copy_layers, self.encoder, layers, spec)

    def without_files(self) -> dict[str, Any]:
        """Arguments that rebuild this network, except its weights, without the files it read."""
        architecture = self.encoder.config.to_dict()
        for name in _NOT_ARCHITECTURE:
            architecture.pop(name, None)
        return {
            "pretrained": None,
            "architecture": architecture,
            "copy_from": None,
            "copy_layers": None,
        }

    def _check_padding(self) -> None:
        """Check that the logits of a sentence do not depend on the padding of its batch.

        Raises:
            UserError: if they do, as in decoders, or if the encoder cannot read a sentence.
        """
        config = self.encoder.config
        name = type(self.encoder).__name__
        # Any five tokens; most vocabularies start with special tokens.
        ids = (torch.arange(5, 10) % config.vocab_size)[None]
        pad = getattr(config, "pad_token_id", None) or 0
        padded = nn.functional.pad(ids, (0, 3), value=pad)
        mask = torch.ones_like(ids)
        padded_mask = nn.functional.pad(mask, (0, 3))
        self.eval()
        try:
            with torch.no_grad():
                expected = self(ids, mask)
                logits = self(padded, padded_mask)
        except Exception as error:
            # Encoders of other kinds fail in many ways.
            # Some of the errors have no text at all.
            lines = str(error).splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise UserError(
                f"{name} cannot read a sentence; use an encoder for text, such as bert: {reason}"
            ) from error
        self.train()
        # Fused kernels sum in another order for another length, so the logits are not identical.
        if not torch.allclose(expected, logits, atol=1e-4):
            raise UserError(
                f"{name} does not ignore padding, so logits would depend on the batch; "
                "use an encoder with an attention mask, such as bert"
            )

    def _freeze_all_but(self, layers: nn.ModuleList, count: int) -> None:
        """Freeze the encoder except its last `count` layers."""
        if not 0 <= count <= len(layers):
            raise UserError(
                f"TransformerClassifier: trainable_layers must be 0 to {len(layers)}, got {count}"
            )
        self.encoder.requires_grad_(False)
        # Not `layers[-count:]`, which is the whole list if the count is 0.
        layers[len(layers) - count :].requires_grad_(True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Classify sentences.

        Args:
            input_ids: int64 `(B, L)`.
            attention_mask: int64 `(B, L)`, 1 for tokens and 0 for padding.
            token_type_ids: int64 `(B, L)`, the number of the text (0 or 1) of each token; ignored
                if the encoder does not read it.

        Returns:
            Logits `(B, K)`.
        """
        types: dict[str, Tensor] = {}
        if self.typed and token_type_ids is not None:
            types["token_type_ids"] = token_type_ids
        # Hidden states cost memory: request them only if a hook waits for them.
        is_tapped = any(tap._forward_hooks for tap in self.states)
        outputs = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=is_tapped,
            **types,
        )
        for tap, state in zip(self.states, outputs.hidden_states or (), strict=False):
            tap(state)
        # The first token ([CLS] in BERT) stands for the sentence.
        sentence = outputs.last_hidden_state[:, 0]
        logits: Tensor = self.head(sentence)
        return logits


def _encoder(
    pretrained: str | None,
    architecture: dict[str, Any] | None,
    tokens: Tokens,
) -> Encoder:
    """The encoder without its pooler."""
    if pretrained is not None and architecture is None:
        encoder = load_encoder(pretrained)
    elif architecture is not None and pretrained is None:
        encoder = make_encoder(architecture, tokens)
    else:
        raise UserError("TransformerClassifier: give either pretrained or architecture")
    if getattr(encoder, "pooler", None) is not None:
        # Its weights would have no gradient, and distributed training would wait for them.
        encoder.pooler = None
    return encoder


def _head(
    width: int,
    hidden: int | None,
    dropout: float,
    num_classes: int,
) -> nn.Sequential:
    """From a state `(B, width)` to logits `(B, num_classes)`, with one hidden layer or none."""
    layers: list[nn.Module] = []
    if hidden is not None:
        layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(width, hidden))
        layers.append(nn.ReLU())
        width = hidden
    layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(width, num_classes))
    return nn.Sequential(*layers)


def _taps(count: int) -> nn.ModuleList:
    """Modules that return their input, for hooks on values that are not a module's output."""
    taps = nn.ModuleList()
    for _ in range(count):
        taps.append(nn.Identity())
    return taps
