"""What all language models of the transformers library have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models.encoders import Tokens, check_vocabulary
from kd_lightning.models.language_weights import (
    LanguageModelKind,
    load_language_model,
    make_language_model,
    with_layers,
)
from kd_lightning.spec import Spec

_NOT_ARCHITECTURE = ("transformers_version", "architectures", "dtype")
"""Entries of a configuration that are not arguments of a network."""


class LanguageModel(nn.Module, ABC):
    """Base class of the language models of the transformers library.

    Args:
        pretrained: name of a model on the hub, or path of a folder.
        gguf_file: name of a GGUF file in it.
        layers: keep only these layers of a pretrained model, from 0; `None`: all.
        architecture: for random weights: arguments of a configuration of transformers.
        num_classes: V, the number of tokens. Logits of a model with a padded vocabulary
            are cut to V.
        spec: description of the data.

    Attributes:
        kind: of the models that a subclass holds.
        length_options: what decides how many tokens a model must read, for messages.
        model: of the library.

    Raises:
        UserError: if the model cannot be loaded, or does not fit the tokenizer or the
            arguments.
    """

    kind: ClassVar[LanguageModelKind]
    length_options: ClassVar[str] = "data.length"

    def __init__(
        self,
        pretrained: str | None,
        gguf_file: str | None,
        layers: list[int] | None,
        architecture: dict[str, Any] | None,
        num_classes: int | None,
        spec: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        tokens: Tokens = (spec or {}).get("vocabulary", {})
        if pretrained is not None and architecture is None:
            self.model = load_language_model(self.kind, pretrained, gguf_file)
            if layers is not None:
                self.model = with_layers(self.kind, self.model, layers)
        elif architecture is not None and pretrained is None and layers is None:
            settings = {
                "vocab_size": num_classes,
                **self.special_tokens(tokens),
                **architecture,
            }
            self.model = make_language_model(self.kind, settings)
        else:
            raise UserError(
                f"{self.kind.owner}: give either pretrained (and maybe layers) or "
                "architecture"
            )
        self.pretrained = pretrained
        self.gguf_file = gguf_file
        self.num_classes = num_classes or self.model.config.vocab_size
        if spec is not None:
            self._check_tokens(tokens)

    @staticmethod
    @abstractmethod
    def special_tokens(tokens: Tokens) -> dict[str, int | None]:
        """The special tokens in the configuration of a model with random weights.

        Args:
            tokens: the vocabulary in the spec of the data; empty if there is none.
        """

    @property
    def longest_input(self) -> int | None:
        """How many tokens the model can read; `None` if it has no limit."""
        # GPT-2 calls this limit otherwise, and translates the name.
        longest = int(getattr(self.model.config, "max_position_embeddings", 0))
        return longest if longest > 0 else None

    def _check_tokens(self, tokens: Tokens) -> None:
        """Check that the model reads the data's tokens.

        Raises:
            UserError: if the vocabularies differ, or the blocks are too long.
        """
        if not tokens:
            return
        size = self.model.config.vocab_size
        name = self.pretrained or "of the architecture"
        if tokens["size"] > size:
            raise UserError(
                f"the tokenizer has {tokens['size']:,} tokens, but the language model "
                f"{name} has {size:,}; use the model's own tokenizer, "
                "kd_lightning.data.PretrainedLanguageTokenizer with the same name"
            )
        if self.pretrained is not None:
            check_vocabulary(self.pretrained, tokens, self.gguf_file)
        longest = self.longest_input
        if longest is not None and longest < tokens["max_length"]:
            raise UserError(
                f"the language model reads at most {longest} tokens, but "
                f"{self.length_options} is {tokens['max_length']}; set "
                f"{self.length_options} to {longest} or less"
            )

    def trained_on(self, data: Spec) -> Spec:
        """The spec of the data that the model was trained on, as far as it is known.

        Args:
            data: the spec of the data that the network will read.

        Raises:
            UserError: if the network does not read the tokens of the data.
        """
        vocabulary = data.for_teacher().vocabulary
        if vocabulary is not None:
            self._check_tokens(cast(Tokens, dict(vars(vocabulary))))
        return Spec(task=data.task, vocabulary=vocabulary)

    def without_files(self) -> dict[str, Any]:
        """Arguments that rebuild this network without the files it read.

        They do not hold its weights.
        """
        architecture = self.model.config.to_dict()
        for name in _NOT_ARCHITECTURE:
            architecture.pop(name, None)
        return {"pretrained": None, "layers": None, "architecture": architecture}

    def _known(self, logits: Tensor) -> Tensor:
        """The logits `(B, L, V)` of the tokens that exist.

        Args:
            logits: of all tokens of the model, `(B, L, V')`.
        """
        # Some models pad their vocabulary; no text has the tokens beyond the
        # tokenizer's.
        return logits[..., : self.num_classes]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def added_to_scores(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, `(B, 1, L, L)`.

    0 for visible tokens, and the smallest number for others.

    Args:
        visible: bool `(B, L, L)`, the tokens (last) that each token sees.
        dtype: of the scores.
    """
    # A number rather than minus infinity, which becomes NaN where a row sees nothing.
    hidden = torch.finfo(dtype).min
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, hidden)[:, None]
