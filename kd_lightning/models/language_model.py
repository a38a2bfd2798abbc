"""Causal language models of the transformers library."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.features import evaluating
from kd_lightning.models.encoders import Tokens
from kd_lightning.models.language_base import LanguageModel, added_to_scores
from kd_lightning.models.language_weights import LanguageModelKind


class CausalLanguageModel(LanguageModel):
    """A causal language model of the transformers library.

    Give either `pretrained` or `architecture`. Pretrained weights are read from safetensors or GGUF
    files only, and code that comes with a model is never run.

    Layers to tap are those of the model of transformers, below `model`, such as
    `model.model.layers.3` for Llama.

    Args:
        pretrained: name of a model on the hub, such as `HuggingFaceTB/SmolLM2-135M`, or path of a
            folder.
        gguf_file: name of a GGUF file in it; needs `pip install 'kd_lightning[gguf]'`.
        layers: keep only these layers of a pretrained model, from 0, as a student that starts from
            its teacher (Sanh et al. 2019, section 3); `None`: all.
        architecture: for random weights: arguments of a configuration of transformers, such as
            `{model_type: llama, hidden_size: 256, num_hidden_layers: 4, num_attention_heads: 4,
            intermediate_size: 768}`; the size of the vocabulary comes from the data.
        num_classes: V, the number of tokens; `kd` fills it in from the data. Logits of a model with
            a padded vocabulary are cut to V.
        spec: description of the data; `kd` fills it in.

    Shapes:
        `input_ids` (and `documents`, `position_ids`) int64 `(B, L)`; output logits `(B, L, V)`.

    Raises:
        UserError: if the model cannot be loaded, or does not fit the tokenizer or the arguments.
    """

    kind: ClassVar[LanguageModelKind] = LanguageModelKind(
        owner="CausalLanguageModel",
        auto_class="AutoModelForCausalLM",
        description="a causal language model",
        examples="llama or gpt2",
    )

    def __init__(
        self,
        pretrained: str | None = None,
        gguf_file: str | None = None,
        layers: list[int] | None = None,
        architecture: dict[str, Any] | None = None,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pretrained, gguf_file, layers, architecture, num_classes, spec)

    @staticmethod
    def special_tokens(tokens: Tokens) -> dict[str, int | None]:
        """The token that ends a document also begins texts.

        It pads blocks, too, but is not named as such: transformers would not train its embedding.
        """
        end = tokens.get("pad")
        return {"pad_token_id": None, "bos_token_id": end, "eos_token_id": end}

    def without_files(self) -> dict[str, Any]:
        """Arguments that rebuild this network without the files it read."""
        return {**super().without_files(), "gguf_file": None}

    def forward(
        self,
        input_ids: Tensor,
        documents: Tensor | None = None,
        position_ids: Tensor | None = None,
        states_only: bool = False,
    ) -> Tensor:
        """Predict the token after each token.

        Args:
            input_ids: int64 `(B, L)`.
            documents: int64 `(B, L)`, the document of each token; a token sees the earlier tokens
                of its own document. `None`: all tokens of a block are one document.
            position_ids: int64 `(B, L)`, the place of each token in its document.
            states_only: return what the output layer reads, instead of logits.

        Returns:
            Logits `(B, L, V)`; states `(B, L, H)` with `states_only`.
        """
        arguments: dict[str, Tensor] = {}
        if documents is not None:
            arguments["attention_mask"] = attention_mask(documents, self._dtype)
        if position_ids is not None:
            arguments["position_ids"] = position_ids
        # A cache of keys and values serves generation alone.
        if states_only:
            body = self.model.base_model
            hidden = body(input_ids=input_ids, use_cache=False, **arguments)
            states: Tensor = hidden.last_hidden_state
            return states
        output = self.model(input_ids=input_ids, use_cache=False, **arguments)
        return self._known(output.logits)

    def head(self, states: Tensor) -> Tensor:
        """The logits of some positions.

        Args:
            states: `(..., H)`, from `forward` with `states_only`.

        Returns:
            Logits `(..., V)`.
        """
        logits: Tensor = self.model.get_output_embeddings()(states)
        return self._known(logits)

    def check_head(self) -> None:
        """Check that `head` gives the model's logits; some models change those further.

        Raises:
            UserError: if it does not.
        """
        device = next(self.parameters()).device
        # Two tokens suffice, and every vocabulary has them.
        ids = torch.arange(2, device=device)[None]
        with evaluating(self), torch.no_grad():
            expected = self(ids)
            logits = self.head(self(ids, states_only=True))
        if not torch.allclose(logits, expected, equal_nan=True):
            raise UserError(
                f"{type(self.model).__name__} changes its logits after its output layer; leave "
                "out model.row_chunk"
            )


def attention_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, `(B, 1, L, L)`: 0 for visible tokens, else the minimum.

    Args:
        documents: int64 `(B, L)`.
        dtype: of the scores.
    """
    length = documents.shape[-1]
    same_document = documents[:, :, None] == documents[:, None, :]
    places = torch.arange(length, device=documents.device)
    is_earlier = places[:, None] >= places
    visible = same_document & is_earlier
    return added_to_scores(visible, dtype)
