"""Masked language models of the transformers library."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.models.encoders import Tokens
from kd_lightning.models.language_base import LanguageModel, added_to_scores
from kd_lightning.models.language_weights import LanguageModelKind


class MaskedLanguageModel(LanguageModel):
    """A masked language model of the transformers library, such as BERT.

    Give either `pretrained` or `architecture`. Pretrained weights are read from
    safetensors files only, and code that comes with a model is never run.

    Layers to tap are those of the model of transformers, below `model`, such as
    `model.bert.encoder.layer.3` for BERT.

    Args:
        pretrained: name of a model on the hub, such as `google-bert/bert-base-uncased`,
            or path of a folder. It must hold the head that predicts masked tokens.
        layers: keep only these layers of a pretrained model, from 0, as a student that
            starts from its teacher (Sanh et al. 2019, section 3); `None`: all.
        architecture: for random weights: arguments of a configuration of transformers,
            such as `{model_type: bert, hidden_size: 384, num_hidden_layers: 6,
            num_attention_heads: 12, intermediate_size: 1536}`; the size of the
            vocabulary comes from the data.
        num_classes: V, the number of tokens; `kd` fills it in from the data. Logits of
            a model with a padded vocabulary are cut to V.
        spec: description of the data; `kd` fills it in.

    Shapes:
        `input_ids`, `attention_mask` (and `documents`, `position_ids`) int64 `(B, L)`;
        output logits `(B, L, V)`.

    Raises:
        UserError: if the model cannot be loaded, does not fit the tokenizer or the
            arguments, or does not keep the documents of a block apart where the data
            asks for it.
    """

    kind: ClassVar[LanguageModelKind] = LanguageModelKind(
        owner="MaskedLanguageModel",
        auto_class="AutoModelForMaskedLM",
        description="a masked language model, with the head that predicts its tokens",
        examples="bert or roberta",
    )

    def __init__(
        self,
        pretrained: str | None = None,
        layers: list[int] | None = None,
        architecture: dict[str, Any] | None = None,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pretrained, None, layers, architecture, num_classes, spec)
        parameters = inspect.signature(self.model.forward).parameters
        self._reads_positions = "position_ids" in parameters
        inputs = (spec or {}).get("inputs") or {}
        if "documents" in inputs:
            self._check_documents()

    @staticmethod
    def special_tokens(tokens: Tokens) -> dict[str, int | None]:
        """No token pads: an embedding of padding would get no gradient."""
        return {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}

    @property
    def longest_input(self) -> int | None:
        """How many tokens the model can read; `None` if it has no limit."""
        longest = super().longest_input
        return None if longest is None else longest - self._first_position

    @property
    def _first_position(self) -> int:
        """The position of the first token."""
        # In RoBERTa and its relatives, it follows the id of the padding token.
        for name, module in self.model.named_modules():
            if name.endswith(".position_embeddings"):
                padding: int | None = getattr(module, "padding_idx", None)
                return 0 if padding is None else padding + 1
        return 0

    def _check_documents(self) -> None:
        """Check that no token sees another document of its block.

        Raises:
            UserError: if one does.
        """
        remedy = "set data.packed=false, or data.boundaries=ignore"
        name = type(self.model).__name__
        # Windows of attention need a mask of their own, and would be widened by ours.
        kinds = getattr(self.model.config, "layer_types", None) or ()
        if "sliding_attention" in kinds:
            raise UserError(
                f"{name} has layers of local attention, which cannot keep the "
                f"documents of a block apart; {remedy}"
            )
        is_training = self.training
        self.eval()
        try:
            keeps_apart = self._keeps_documents_apart()
        except Exception:
            # Models that read other masks fail in many ways.
            keeps_apart = False
        self.train(is_training)
        if not keeps_apart:
            raise UserError(
                f"{name} does not keep the documents of a block apart; {remedy}"
            )

    @torch.no_grad()
    def _keeps_documents_apart(self) -> bool:
        """Whether two documents in one block have the logits that each has alone."""
        # Any tokens; most vocabularies start with special ones.
        ids = (torch.arange(5, 11) % self.num_classes)[None]
        documents = torch.tensor([[0, 0, 0, 1, 1, -1]])
        places = torch.tensor([[0, 1, 2, 0, 1, 0]])
        packed = self(ids, (documents >= 0).long(), documents, places)
        first = self(ids[:, :3], torch.ones(1, 3))
        second = self(ids[:, 3:5], torch.ones(1, 2))
        alone = torch.cat([first, second], dim=1)
        # Fused kernels sum in another order for another length.
        return torch.allclose(packed[:, :5], alone, atol=1e-3)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        documents: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Predict the token at each place, of which the data has masked some.

        Args:
            input_ids: int64 `(B, L)`.
            attention_mask: int64 `(B, L)`, 1 for tokens and 0 for padding.
            documents: int64 `(B, L)`, the document of each token; a token sees its own
                document alone, and no token sees the padding. `None`: a block is one
                document.
            position_ids: int64 `(B, L)`, the place of each token in its document.

        Returns:
            Logits `(B, L, V)`.
        """
        arguments: dict[str, Tensor] = {}
        if self._reads_positions:
            if position_ids is None:
                length = input_ids.shape[-1]
                position_ids = torch.arange(length, device=input_ids.device)[None]
            arguments["position_ids"] = position_ids + self._first_position
        mask = attention_mask
        if documents is not None:
            # Padding is a document of its own.
            same_document = documents[:, :, None] == documents[:, None, :]
            mask = added_to_scores(same_document, self._dtype)
        output = self.model(input_ids=input_ids, attention_mask=mask, **arguments)
        return self._known(output.logits)
