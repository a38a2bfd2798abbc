"""Sequence-to-sequence models of the transformers library."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, cast

from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.models.encoders import Tokens
from kd_lightning.models.language_base import LanguageModel
from kd_lightning.models.language_weights import LanguageModelKind


class _Config(Protocol):
    """The part of a configuration in use."""

    decoder_start_token_id: int | None


class SequenceToSequenceModel(LanguageModel):
    """An encoder and a decoder of the transformers library, such as T5.

    Give either `pretrained` or `architecture`. Pretrained weights are read from
    safetensors files only, and code that comes with a model is never run.

    Args:
        pretrained: name of a model on the hub, such as `google-t5/t5-small`, or path of
            a folder.
        architecture: for random weights: arguments of a configuration of transformers,
            such as `{model_type: t5, d_model: 256, d_kv: 64, d_ff: 1024, num_layers: 4,
            num_heads: 4}`; the size of the vocabulary comes from the data.
        num_classes: V, the number of tokens; `kd` fills it in from the data. Logits of
            a model with a padded vocabulary are cut to V.
        spec: description of the data; `kd` fills it in.

    Shapes:
        `input_ids`, `attention_mask` int64 `(B, P)`; `decoder_input_ids` int64
        `(B, L)`; output logits `(B, L, V)`.

    Raises:
        UserError: if the model cannot be loaded, or does not fit the tokenizer or the
            arguments.
    """

    kind: ClassVar[LanguageModelKind] = LanguageModelKind(
        owner="SequenceToSequenceModel",
        auto_class="AutoModelForSeq2SeqLM",
        description="a sequence-to-sequence model",
        examples="t5 or bart",
    )
    length_options: ClassVar[str] = "the larger of data.prompt_length and data.length"

    def __init__(
        self,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pretrained, None, None, architecture, num_classes, spec)
        config = cast(_Config, self.model.config)
        if config.decoder_start_token_id is None:
            raise UserError(
                "SequenceToSequenceModel: the model has no decoder_start_token_id; add "
                "it to architecture, or to the config.json of the folder"
            )
        self._start = config.decoder_start_token_id

    @staticmethod
    def special_tokens(tokens: Tokens) -> dict[str, int | None]:
        """The token that ends a text also starts the decoder; no token pads."""
        end = tokens.get("pad", 0)
        return {
            "pad_token_id": None,
            "bos_token_id": end,
            "eos_token_id": end,
            "decoder_start_token_id": end,
        }

    def without_files(self) -> dict[str, Any]:
        """Arguments that rebuild this network without the files it read."""
        arguments = super().without_files()
        arguments.pop("layers")
        return arguments

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        """Predict the token after each token that the decoder reads.

        Padding of the decoder needs no mask: it follows all tokens that are predicted.

        Args:
            input_ids: int64 `(B, P)`, what the encoder reads.
            attention_mask: int64 `(B, P)`, 1 for tokens and 0 for padding.
            decoder_input_ids: int64 `(B, L)`; the model's start token replaces the
                first one.

        Returns:
            Logits `(B, L, V)`.
        """
        decoder_inputs = decoder_input_ids.clone()
        decoder_inputs[:, 0] = self._start
        # A cache of keys and values serves generation alone.
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_inputs,
            use_cache=False,
        )
        return self._known(output.logits)
