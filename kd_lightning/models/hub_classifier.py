"""Classifiers of the transformers library with the heads that they were trained with."""

from __future__ import annotations

import inspect
import re
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.hub import Encoder, from_pretrained
from kd_lightning.models.encoders import Tokens, check_tokens
from kd_lightning.spec import Spec

_AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}
"""How the class names of classifiers end, and what loads them."""

_UNNAMED = re.compile(r"LABEL_\d+")


class _ClassifierConfig(Protocol):
    """The part of a configuration of transformers in use."""

    architectures: list[str] | None
    id2label: dict[int, str]


class _HubModel(Protocol):
    """The part of a classifier of transformers in use."""

    config: _ClassifierConfig
    base_model: nn.Module


class HubClassifier(nn.Module):
    """A classifier that `save_pretrained` wrote, with its trained head.

    Weights are read from safetensors files only, and code that comes with a model is never run.

    Args:
        folder: written by `save_pretrained` of a model for the classification of texts or images.

    Attributes:
        classes: names of the classes, class 0 first; empty if the model has no names for them.
        num_classes: K.

    Raises:
        UserError: if the folder cannot be read, or holds a model without a trained head.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        model, report = from_pretrained(
            _auto_class(folder),
            folder,
            use_safetensors=True,
            output_loading_info=True,
            # Weights stored in half precision are still computed in single precision.
            dtype=torch.float32,
        )
        # The library loads such a model with a warning only.
        missing = sorted(report["missing_keys"])
        if missing:
            raise UserError(
                f"{folder} has no {missing[0]!r}, so that part of the model would have random "
                "weights; give a folder that holds the fine-tuned classifier"
            )
        self.model: nn.Module = model
        self.classes = _class_names(cast(_HubModel, model).config)
        self.num_classes = len(cast(_HubModel, model).config.id2label)
        self._arguments = frozenset(inspect.signature(model.forward).parameters)

    def trained_on(self, data: Spec) -> Spec:
        """The spec of the data that the classifier was trained on, as far as it is known.

        Args:
            data: the spec of the data that the network will read.

        Raises:
            UserError: if the tokenizers differ, or if the samples can be too long.
        """
        vocabulary = data.for_teacher().vocabulary
        if vocabulary is not None:
            encoder = cast(_HubModel, self.model).base_model
            tokens = cast(Tokens, dict(vars(vocabulary)))
            check_tokens(self.folder, cast(Encoder, encoder), tokens)
        return Spec(
            data=self.folder,
            task=data.task,
            num_classes=self.num_classes,
            classes=_matching_names(self.classes, data.classes),
        )

    def forward(self, images: Tensor | None = None, **tokens: Tensor) -> Tensor:
        """Classify images, or sentences given by the tokenizer's names.

        Args:
            images: float `(B, C, H, W)`.
            tokens: int64 `(B, L)` each; those that the model does not read are ignored.

        Returns:
            Logits `(B, K)`.
        """
        inputs: dict[str, Tensor] = {}
        if images is not None:
            inputs["pixel_values"] = images
        for name, tensor in tokens.items():
            # Tokenizers make token types that not every model reads.
            if name in self._arguments:
                inputs[name] = tensor
        logits: Tensor = self.model(**inputs).logits
        return logits


def _auto_class(folder: str) -> str:
    """The class of transformers that loads a classifier with its head."""
    config: _ClassifierConfig = from_pretrained("AutoConfig", folder)
    architectures = config.architectures or []
    for architecture in architectures:
        for ending, auto_class in _AUTO_CLASSES.items():
            if architecture.endswith(ending):
                return auto_class
    kind = ", ".join(architectures) or "a model without a head"
    raise UserError(
        f"{folder} holds {kind}, not a classifier, so its head would have random weights; "
        "fine-tune it first (kd fit with kd_lightning.models.TransformerClassifier and "
        f"pretrained={folder}) and give that run's checkpoint"
    )


def _class_names(config: _ClassifierConfig) -> tuple[str, ...]:
    names = [str(config.id2label[number]) for number in sorted(config.id2label)]
    # The library numbers classes to which nobody gave a name.
    if all(_UNNAMED.fullmatch(name) for name in names):
        return ()
    return tuple(names)


def _matching_names(known: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """A model's class names, or the data's where both mean the same.

    Args:
        known: the model's names.
        given: the data's names.

    Returns:
        The data's names if they differ from the model's in upper and lower case alone; nothing if
        the data only numbers its classes; else the model's names.
    """
    if [name.casefold() for name in known] == [name.casefold() for name in given]:
        return given
    # Numbers as names carry no meaning, so they contradict no names of the model.
    if list(given) == [str(number) for number in range(len(given))]:
        return ()
    return known
