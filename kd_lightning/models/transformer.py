"""Sentence classifiers on the encoders of the transformers library."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.hub import from_pretrained, library, pretrained_tokenizer, vocabulary_sha256
from kd_lightning.models.attention import tap_scores
from kd_lightning.models.embedding import check_shares
from kd_lightning.spec import check_vocabulary
from kd_lightning.weights import KEY, network_weights, read_file


class TransformerClassifier(nn.Module):
    """An encoder of the transformers library, the state of its first token, and a head.

    Give one of: `pretrained`, the name of a model on the hub or the path of a folder (safetensors alone are read, and no code
    of the model's own is run); or `architecture`, for random weights.

    Layers to tap: `states.0` (embeddings) to `states.N` are each layer's output `(B, L, H)`; `scores.1` to `scores.N` each
    layer's attention before the softmax `(B, heads, L, L)`. Padding is part of both: a loss leaves it out.

    Args:
        pretrained: a model of the hub, such as `bert-base-uncased`, or a folder of one.
        architecture: arguments of a configuration of the transformers library, `model_type` among them, such as
            `{model_type: bert, hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 512}`; the
            size of the vocabulary comes from the data.
        trainable_layers: train the last so many layers, and the head; `None`: all, the embeddings too.
        head: units of a hidden layer with ReLU between the encoder and the classes; `None`: none.
        dropout: before each layer of the head.
        copy_from: checkpoint of a TransformerClassifier of the same width with more layers, whose embeddings and every
            k-th layer are where this one starts (Sanh et al. 2019, section 3).
        copy_layers: which layers to copy, from 0; evenly spread, the last among them, where left out.
        num_classes: K, filled in from the data under `kd`.
        spec: filled in from the data under `kd`.

    Shapes:
        `input_ids`, `attention_mask` (and `token_type_ids`) int64 `(B, L)`, padded at the end; output logits `(B, K)`.

    Raises:
        UserError: where the model cannot be had, or does not fit the tokenizer or the arguments.
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
                "TransformerClassifier: num_classes is needed; under kd it comes from the data"
            )
        if (pretrained is None) == (architecture is None):
            raise UserError("TransformerClassifier: give either pretrained or architecture")
        check_shares("TransformerClassifier", dropout=dropout)
        tokens = (spec or {}).get("vocabulary", {})
        self.encoder = (
            _load(pretrained) if pretrained is not None else _make(architecture or {}, tokens)
        )
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = (
                None  # weights without a use, which several processes would wait for
            )
        config = self.encoder.config
        _check_tokens(pretrained, self.encoder, tokens)
        self.typed = int(getattr(config, "type_vocab_size", 0)) > 1
        width, layers = int(config.hidden_size), encoder_layers(self.encoder)
        inner = [nn.Dropout(dropout), nn.Linear(width, head), nn.ReLU()] if head is not None else []
        self.head = nn.Sequential(
            *inner, nn.Dropout(dropout), nn.Linear(width if head is None else head, num_classes)
        )
        self.states = nn.ModuleList(nn.Identity() for _ in range(int(config.num_hidden_layers) + 1))
        self.scores = nn.ModuleList(nn.Identity() for _ in range(len(layers) + 1))
        tap_scores(self.encoder, layers, self.scores[1:])
        if not len(layers) and (trainable_layers is not None or copy_from is not None):
            raise UserError(
                f"{type(self.encoder).__name__} has no list of its layers; it cannot be frozen or copied by layer"
            )
        self._check_padding()
        if trainable_layers is not None:
            self._freeze_but(layers, trainable_layers)
        if copy_from is not None:
            self._copy(Path(copy_from).expanduser(), copy_layers, layers, spec)

    def without_files(self) -> dict[str, Any]:
        """Arguments that make this network, but for its weights, where the files that it started from are not at hand."""
        told = self.encoder.config.to_dict()
        architecture = {
            k: v
            for k, v in told.items()
            if k not in ("transformers_version", "architectures", "dtype")
        }
        return {
            "pretrained": None,
            "architecture": architecture,
            "copy_from": None,
            "copy_layers": None,
        }

    def _check_padding(self) -> None:
        """UserError where what a sentence's first token says depends on how far its batch is padded, as in decoders."""
        config, name = self.encoder.config, type(self.encoder).__name__
        ids = (torch.arange(5, 10) % config.vocab_size)[None]
        padded = nn.functional.pad(ids, (0, 3), value=getattr(config, "pad_token_id", None) or 0)
        try:
            with torch.no_grad():
                self.eval()
                alone, wider = (
                    self(each, (torch.arange(each.shape[1]) < 5).long()[None])
                    for each in (ids, padded)
                )
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{name} cannot read a sentence; take an encoder, such as BERT's: {reason}"
            ) from error
        self.train()
        if not torch.allclose(alone, wider, atol=1e-4):
            raise UserError(
                f"{name} cannot leave padding out: logits would depend on the batch; take BERT's kin"
            )

    def _freeze_but(self, layers: nn.ModuleList, count: int) -> None:
        if not 0 <= count <= len(layers):
            raise UserError(
                f"TransformerClassifier: trainable_layers must be 0 to {len(layers)}, got {count}"
            )
        self.encoder.requires_grad_(False)
        layers[len(layers) - count :].requires_grad_(True)

    def _copy(
        self,
        path: Path,
        chosen: list[int] | None,
        layers: nn.ModuleList,
        spec: dict[str, Any] | None,
    ) -> None:
        content = read_file(path, "copy_from")
        check_vocabulary(
            f"copy_from {path}",
            (content.get(KEY) or {}).get("spec"),
            spec or {},
            (spec or {}).get("vocabulary"),
        )
        own: dict[str, Tensor] = self.encoder.state_dict()
        theirs = {k.removeprefix("encoder."): v for k, v in network_weights(content).items()}
        prefix = next(name for name, module in self.encoder.named_modules() if module is layers)
        there = {
            int(k.removeprefix(f"{prefix}.").partition(".")[0])
            for k in theirs
            if k.startswith(f"{prefix}.")
        }
        count = len(layers)
        from_layers = (
            [round((at + 1) * len(there) / count) - 1 for at in range(count)]
            if chosen is None
            else chosen
        )
        if len(from_layers) != count or not set(from_layers) <= there:
            raise UserError(
                f"copy_from: {path} has {len(there)} layers; {count} of them are needed, not {from_layers}"
            )
        for name, tensor in own.items():
            source = name
            if name.startswith(f"{prefix}."):
                number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
                source = f"{prefix}.{from_layers[int(number)]}.{rest}"
            if source not in theirs or theirs[source].shape != tensor.shape:
                raise UserError(
                    f"copy_from: {path} has no {source!r} of shape {tuple(tensor.shape)}; is it of another width?"
                )
            tensor.copy_(theirs[source])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        typed = (
            {"token_type_ids": token_type_ids} if self.typed and token_type_ids is not None else {}
        )
        wanted = any(tap._forward_hooks for tap in self.states)
        found = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=wanted, **typed
        )
        for tap, state in zip(self.states, found.hidden_states or (), strict=False):
            tap(state)
        logits: Tensor = self.head(found.last_hidden_state[:, 0])
        return logits


def _make(architecture: dict[str, Any], tokens: dict[str, Any]) -> Any:
    """An encoder with random weights, for the vocabulary of the data."""
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
        return transformers.AutoModel.from_config(config)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"TransformerClassifier: architecture: {str(error).splitlines()[0]}"
        ) from error


def _load(name: str) -> Any:
    """An encoder with the weights of a folder or the hub; UserError where some of its weights are not there."""
    # Weights that are kept in half precision are trained in single precision all the same.
    options = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    encoder, loaded = from_pretrained("AutoModel", name, **options)
    # A pooler is not used: models that were trained without one lack it.
    if missing := sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler.")):
        raise UserError(
            f"{name} holds no {missing[0]!r} for {type(encoder).__name__}; is it an encoder's folder?"
        )
    return encoder


def _check_tokens(pretrained: str | None, encoder: Any, tokens: dict[str, Any]) -> None:
    """Whether the tokenizer's numbers are those that the encoder was trained with, as far as that can be known."""
    if not tokens:
        return
    config = encoder.config
    if tokens["size"] > config.vocab_size:
        raise UserError(
            f"the tokenizer knows {tokens['size']:,} tokens and the encoder {pretrained or 'of the architecture'} "
            f"{config.vocab_size:,}: they are of different vocabularies; use the encoder's own, "
            "kd_lightning.data.PretrainedTokenizer with the same name"
        )
    if pretrained is not None:
        own = tokens["sha256"]
        with contextlib.suppress(
            UserError
        ):  # a folder without a tokenizer: its vocabulary is not known
            own = vocabulary_sha256(pretrained_tokenizer(pretrained).get_vocab())
        if tokens["sha256"] != own:
            raise UserError(
                f"the tokenizer has another vocabulary than the encoder {pretrained}; use the encoder's own, "
                "kd_lightning.data.PretrainedTokenizer with the same name"
            )
    places = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    # RoBERTa and its kin count places from behind their padding's number.
    padding: int | None = getattr(places, "padding_idx", None)
    first, limit = 0 if padding is None else padding + 1, 0
    with contextlib.suppress(AttributeError, NotImplementedError):  # encoders without a limit
        limit = int(config.max_position_embeddings) - first
    if 0 < limit < tokens["max_length"]:
        raise UserError(
            f"the encoder reads up to {limit} tokens, the tokenizer gives up to {tokens['max_length']}; set its max_length"
        )


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """The list of an encoder's layers; an empty one where there is none, as in ALBERT, whose layers are one."""
    count = int(getattr(encoder.config, "num_hidden_layers", 0))
    lists = (module for module in encoder.modules() if isinstance(module, nn.ModuleList))
    return next((module for module in lists if len(module) == count), nn.ModuleList())
