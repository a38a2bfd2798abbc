"""Causal language models of the transformers library."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.hub import from_pretrained, gguf_options, library
from kd_lightning.models.encoders import Tokens, check_vocabulary
from kd_lightning.spec import Spec

_NOT_ARCHITECTURE = ("transformers_version", "architectures", "dtype")
"""Entries of a configuration that are not arguments of a network."""


class _LanguageModelConfig(Protocol):
    """The part of a configuration of transformers in use."""

    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the configuration, as a copy."""


class _LanguageModel(nn.Module):
    """The part of a causal language model of transformers in use; for annotations only."""

    config: _LanguageModelConfig


class CausalLanguageModel(nn.Module):
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

    def __init__(
        self,
        pretrained: str | None = None,
        gguf_file: str | None = None,
        layers: list[int] | None = None,
        architecture: dict[str, Any] | None = None,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        tokens: Tokens = (spec or {}).get("vocabulary", {})
        if pretrained is not None and architecture is None:
            self.model = _load(pretrained, gguf_file)
            if layers is not None:
                self.model = _with_layers(self.model, layers)
        elif architecture is not None and pretrained is None and layers is None:
            self.model = _make(architecture, num_classes, tokens)
        else:
            raise UserError(
                "CausalLanguageModel: give either pretrained (and maybe layers) or architecture"
            )
        self.pretrained = pretrained
        self.gguf_file = gguf_file
        self.num_classes = num_classes or self.model.config.vocab_size
        if spec is not None:
            self._check_tokens(tokens)

    def _check_tokens(self, tokens: Tokens) -> None:
        """Check that the model reads the data's tokens.

        Raises:
            UserError: if the vocabularies differ, or the blocks are too long.
        """
        if not tokens:
            return
        config = self.model.config
        name = self.pretrained or "of the architecture"
        if tokens["size"] > config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokens['size']:,} tokens, but the language model {name} has "
                f"{config.vocab_size:,}; use the model's own tokenizer, "
                "kd_lightning.data.PretrainedLanguageTokenizer with the same name"
            )
        if self.pretrained is not None:
            check_vocabulary(self.pretrained, tokens, self.gguf_file)
        # GPT-2 calls this limit otherwise, and translates the name.
        longest = int(getattr(config, "max_position_embeddings", 0))
        if 0 < longest < tokens["max_length"]:
            raise UserError(
                f"the language model reads at most {longest} tokens, but data.length is "
                f"{tokens['max_length']}; set data.length to {longest} or less"
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
        """Arguments that rebuild this network, except its weights, without the files it read."""
        architecture = self.model.config.to_dict()
        for name in _NOT_ARCHITECTURE:
            architecture.pop(name, None)
        return {
            "pretrained": None,
            "gguf_file": None,
            "layers": None,
            "architecture": architecture,
        }

    def forward(
        self,
        input_ids: Tensor,
        documents: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Predict the token after each token.

        Args:
            input_ids: int64 `(B, L)`.
            documents: int64 `(B, L)`, the document of each token; a token sees the earlier tokens
                of its own document. `None`: all tokens of a block are one document.
            position_ids: int64 `(B, L)`, the place of each token in its document.

        Returns:
            Logits `(B, L, V)`.
        """
        arguments: dict[str, Tensor] = {}
        if documents is not None:
            arguments["attention_mask"] = _attention_mask(documents, self._dtype)
        if position_ids is not None:
            arguments["position_ids"] = position_ids
        # A cache of keys and values serves generation alone.
        output = self.model(input_ids=input_ids, use_cache=False, **arguments)
        logits: Tensor = output.logits
        # Some models pad their vocabulary; no text has the tokens beyond the tokenizer's.
        return logits[..., : self.num_classes]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def _attention_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
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
    # A number rather than minus infinity, which becomes NaN where a row sees nothing.
    hidden = torch.finfo(dtype).min
    mask = torch.zeros(visible.shape, dtype=dtype, device=documents.device)
    return mask.masked_fill_(~visible, hidden)[:, None]


def _make(
    architecture: Mapping[str, Any], num_classes: int | None, tokens: Tokens
) -> _LanguageModel:
    """A language model with random weights.

    Raises:
        UserError: if arguments are missing or wrong.
    """
    transformers = library("transformers")
    pad = tokens.get("pad")
    settings = {
        "vocab_size": num_classes,
        "pad_token_id": pad,
        "bos_token_id": pad,
        "eos_token_id": pad,
        **architecture,
    }
    if settings["vocab_size"] is None:
        raise UserError(
            "CausalLanguageModel: architecture needs vocab_size; under kd it comes from the data"
        )
    if "model_type" not in settings:
        raise UserError(
            "CausalLanguageModel: architecture needs a model_type, such as llama or gpt2"
        )
    try:
        config = transformers.AutoConfig.for_model(**settings)
        return cast(
            _LanguageModel, transformers.AutoModelForCausalLM.from_config(config)
        )
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        # Configurations check their arguments in ways of their own, and some explain over many
        # lines.
        reason = str(error).splitlines()[0]
        raise UserError(f"CausalLanguageModel: architecture: {reason}") from error


def _load(name: str, gguf_file: str | None) -> _LanguageModel:
    """A pretrained language model, in single precision.

    Raises:
        UserError: if it cannot be loaded, or if some of its weights are missing.
    """
    options = gguf_options(gguf_file)
    if gguf_file is None:
        options["use_safetensors"] = True
    model, report = from_pretrained(
        "AutoModelForCausalLM",
        name,
        output_loading_info=True,
        # Weights stored in half precision are still trained in single precision.
        dtype=torch.float32,
        **options,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{name} has no {missing[0]!r}, so that part of the model would have random weights; "
            "give the folder of a causal language model"
        )
    return cast(_LanguageModel, model)


def _with_layers(model: _LanguageModel, kept: Sequence[int]) -> _LanguageModel:
    """A shallower model that starts from some layers of a deeper one, and from all other weights.

    Args:
        model: the deeper model.
        kept: its layers, from 0, in the order in which the new model has them.

    Raises:
        UserError: if a layer does not exist.
    """
    count = model.config.num_hidden_layers
    if not kept or not all(0 <= number < count for number in kept):
        raise UserError(
            f"CausalLanguageModel: layers must be numbers from 0 to {count - 1}, got {list(kept)}"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    # Models with layers of several kinds list the kind of each.
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = [kinds[number] for number in kept]  # type: ignore[attr-defined]
    factory = library("transformers").AutoModelForCausalLM
    with torch.random.fork_rng():
        shallow: _LanguageModel = factory.from_config(config)
    prefix = _prefix_of_layers(model, count)
    source = model.state_dict()
    for name, tensor in shallow.state_dict().items():
        tensor.copy_(source[_source_name(name, prefix, kept)])
    return shallow


def _prefix_of_layers(model: nn.Module, count: int) -> str:
    """The prefix of the layers' parameters, such as `model.layers.`.

    Raises:
        UserError: if the model has no list of its layers.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return f"{name}."
    raise UserError(
        f"{type(model).__name__} has no list of its layers; leave out layers"
    )


def _source_name(name: str, prefix: str, kept: Sequence[int]) -> str:
    """The name in the deeper model of a tensor of the shallow one."""
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{kept[int(number)]}.{rest}"
