"""A text classifier or a language model as a folder that the transformers library loads alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from kd_lightning.data.text.backend import LibraryTokenizer
from kd_lightning.data.text.sentence_datamodule import SentenceDataModule
from kd_lightning.errors import UserError
from kd_lightning.export.examples import transformers_example
from kd_lightning.export.formats import Format, Predictor
from kd_lightning.export.language_folder import LanguageModelFolder
from kd_lightning.export.student import TrainedStudent
from kd_lightning.hub import from_pretrained, library
from kd_lightning.models import (
    CausalLanguageModel,
    HubClassifier,
    TransformerClassifier,
)
from kd_lightning.tasks import (
    Classification,
    LanguageModelling,
    MultilabelClassification,
)

AUTO_CLASS = "AutoModelForSequenceClassification"

PROBLEMS = {
    Classification.name: "single_label_classification",
    MultilabelClassification.name: "multi_label_classification",
}
"""What transformers calls a task."""

COMPARED_TEXTS = 64
"""Test texts whose tokens are compared."""

_SPECIAL = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


class _Config(Protocol):
    """The part of a configuration of transformers in use."""

    problem_type: str | None
    id2label: dict[int, str]
    label2id: dict[str, int]


class _Model(Protocol):
    """The part of a classifier of transformers in use."""

    config: _Config

    def save_pretrained(self, folder: Path) -> None:
        """Write the weights and the configuration."""


class _DistilBert(Protocol):
    """The layers of transformers' classifier on DistilBERT."""

    distilbert: nn.Module
    pre_classifier: nn.Linear
    classifier: nn.Linear


class TransformersFolder(Format):
    """Weights, configuration and tokenizer, as `save_pretrained` writes them.

    The students that fit: a `CausalLanguageModel` (see `LanguageModelFolder`), a
    `HubClassifier`, and a `TransformerClassifier` on DistilBERT, whose head equals
    that of `DistilBertForSequenceClassification`.
    """

    file: ClassVar[str] = "model.safetensors"
    library: ClassVar[str] = "transformers"

    def __init__(self) -> None:
        self._input_names: tuple[str, ...] | None = None
        self._language: LanguageModelFolder | None = None

    def write(self, student: TrainedStudent, folder: Path) -> None:
        if isinstance(student.module.net, CausalLanguageModel):
            self._language = LanguageModelFolder(student.input_names)
            self._language.write(student, folder)
            return
        model = _classifier(student)
        config = model.config
        config.problem_type = PROBLEMS[student.spec.task]
        # Without names, transformers calls the classes LABEL_0, LABEL_1, ...
        if student.spec.classes:
            config.id2label = dict(enumerate(student.spec.classes))
            config.label2id = {name: n for n, name in config.id2label.items()}
        model.save_pretrained(folder)
        # Above its limit per file, transformers writes parts and an index of them,
        # which `read` and the example would not open.
        if not (folder / self.file).is_file():
            raise UserError(
                "the student is so large that transformers writes several files; use "
                "--format "
                "safetensors"
            )
        _write_tokenizer(student, folder)
        self._input_names = student.input_names

    def read(self, folder: Path) -> Predictor:
        language = self._language or _stored_language_model(folder)
        if language is not None:
            return language.read(folder)
        model = from_pretrained(
            AUTO_CLASS, str(folder), use_safetensors=True, dtype=torch.float32
        )
        model.eval()
        names = self._input_names or _stored_names(folder)
        # A classifier without token types refuses them, although the tokenizer makes
        # them.
        known = inspect.signature(model.forward).parameters
        is_multilabel = (
            model.config.problem_type == PROBLEMS[MultilabelClassification.name]
        )

        def predict(raw: tuple[Tensor, ...]) -> Tensor:
            inputs = {}
            for name, tensor in zip(names, raw, strict=True):
                if name in known:
                    inputs[name] = tensor
            with torch.no_grad():
                logits: Tensor = model(**inputs).logits
            return logits.sigmoid() if is_multilabel else logits.softmax(-1)

        return predict

    def example(self, student: TrainedStudent) -> str:
        if self._language is not None:
            return self._language.example(student)
        # The example must end in probabilities, as the other formats do.
        function = "softmax(-1)"
        if student.spec.task == MultilabelClassification.name:
            function = "sigmoid()"
        using = [
            "with torch.no_grad():",
            f"    probabilities = model(**inputs).logits.{function}",
            "print(probabilities.shape, model.config.id2label)",
        ]
        return transformers_example("Classifies a text.", AUTO_CLASS, using)


def _stored_names(folder: Path) -> tuple[str, ...]:
    """The names of the inputs as `kd export` stored them."""
    content = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    return tuple(described["name"] for described in content["inputs"])


def _stored_language_model(folder: Path) -> LanguageModelFolder | None:
    """How to read the language model in a folder; `None` if it holds something else."""
    description = folder / "student.json"
    # `kd export` writes it last.
    if not description.is_file():
        return None
    content = json.loads(description.read_text(encoding="utf-8"))
    if content["task"] != LanguageModelling.name:
        return None
    return LanguageModelFolder(_stored_names(folder))


def _classifier(student: TrainedStudent) -> _Model:
    """The student as a classifier of transformers.

    Raises:
        UserError: if transformers has no such classifier.
    """
    network = student.module.net
    kind = type(network).__name__
    remedy = "use --format onnx, torch-export or safetensors"
    # transformers has no place for an adapter behind the network.
    if student.module.objective.predicts:
        raise UserError(
            f"this student predicts through an adapter of its loss; {remedy}"
        )
    if student.spec.vocabulary is None or student.spec.task not in PROBLEMS:
        raise UserError(
            f"--format transformers is for classifiers of text, and this {kind} is for "
            f"{student.spec.task} of {student.spec.data}; {remedy}"
        )
    if isinstance(network, HubClassifier):
        return cast(_Model, network.model)
    if isinstance(network, TransformerClassifier):
        return _on_distilbert(network, remedy)
    raise UserError(
        "--format transformers is for classifiers on an encoder of transformers, and "
        "the student "
        f"is a {kind}; {remedy}"
    )


def _on_distilbert(network: TransformerClassifier, remedy: str) -> _Model:
    """`DistilBertForSequenceClassification` with the weights of a network.

    Raises:
        UserError: for another encoder, or a head that does not fit into that class.
    """
    arguments = dict(network.without_files()["architecture"])
    model_type = str(arguments.get("model_type"))
    if model_type != "distilbert":
        raise UserError(
            f"transformers' classifier on {model_type} has layers between its encoder "
            "and its "
            f"classes that this one lacks; {remedy}"
        )
    # Dropout and activations of the head have no weights to copy.
    linear = [layer for layer in network.head if isinstance(layer, nn.Linear)]
    classes = linear[-1].out_features
    transformers = library("transformers")
    config = transformers.AutoConfig.for_model(**{**arguments, "num_labels": classes})
    model = getattr(transformers, AUTO_CLASS).from_config(config)
    layers = cast(_DistilBert, model)
    # The encoder is the library's own, so its weights fit by name.
    layers.distilbert.load_state_dict(network.encoder.state_dict())
    first, second = _head_with_relu(linear, layers.pre_classifier.out_features, remedy)
    layers.pre_classifier.load_state_dict(first)
    layers.classifier.load_state_dict(second)
    return cast(_Model, model.eval())


def _head_with_relu(
    linear: Sequence[nn.Linear],
    width: int,
    remedy: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of two layers with ReLU between them that compute what a head computes.

    A hidden layer with fewer units than `width` is filled up with zeros. A head
    without hidden layer is written as `relu(z) - relu(-z) = z`, which takes two units
    per class.

    Args:
        linear: the one or two layers of the head.
        width: units of the hidden layer that the class of transformers has.
        remedy: what a message suggests.

    Raises:
        UserError: if the head needs more units.
    """
    last = linear[-1]
    hidden = linear[0]
    has_hidden_layer = len(linear) > 1
    needed = hidden.out_features if has_hidden_layer else 2 * last.out_features
    if needed > width:
        raise UserError(
            f"the head needs {needed} units, and transformers' classifier on "
            "DistilBERT has "
            f"{width}; {remedy}"
        )
    # Units beyond those in use stay zero, and zero passes through ReLU unchanged.
    first_weight = torch.zeros(width, hidden.in_features)
    first_bias = torch.zeros(width)
    second_weight = torch.zeros(last.out_features, width)
    second_bias = torch.zeros(last.out_features)
    weight = last.weight.detach()
    bias = last.bias.detach()
    if has_hidden_layer:
        first_weight[:needed] = hidden.weight.detach()
        first_bias[:needed] = hidden.bias.detach()
        second_weight[:, :needed] = weight
        second_bias.copy_(bias)
    else:
        # A linear layer through ReLU: x = relu(x) - relu(-x).
        first_weight[:needed] = torch.cat([weight, -weight])
        first_bias[:needed] = torch.cat([bias, -bias])
        signs = torch.eye(last.out_features)
        second_weight[:, :needed] = torch.cat([signs, -signs], dim=1)
    return (
        {"weight": first_weight, "bias": first_bias},
        {"weight": second_weight, "bias": second_bias},
    )


def _input_names(student: TrainedStudent) -> list[str]:
    """The tensors that the tokenizer gives; DistilBERT has no token types."""
    names = list(student.input_names)
    if not isinstance(student.module.net, TransformerClassifier):
        return names
    without_types = []
    for name in names:
        if name != "token_type_ids":
            without_types.append(name)
    return without_types


def _write_tokenizer(student: TrainedStudent, folder: Path) -> None:
    """Write the tokenizer, and compare its tokens with ours.

    Raises:
        UserError: if transformers has no such tokenizer, or its tokens differ.
    """
    datamodule = student.datamodule
    tokenizer = (
        datamodule.tokenizer if isinstance(datamodule, SentenceDataModule) else None
    )
    if not isinstance(tokenizer, LibraryTokenizer):
        raise UserError(
            "transformers cannot read whole words, which this student reads; use "
            "--format onnx, "
            "torch-export or safetensors"
        )
    assert isinstance(datamodule, SentenceDataModule)
    vocabulary = tokenizer.vocabulary
    # The vocabulary maps tokens to numbers, and padding is known by its number.
    token_of = {number: token for token, number in vocabulary.items()}
    special = {"pad_token": token_of[tokenizer.pad]}
    for name, token in _SPECIAL.items():
        if token in vocabulary:
            special[f"{name}_token"] = token
    # A copy, so that the datamodule's own tokenizer stays as it is.
    backend = library("tokenizers").Tokenizer.from_str(tokenizer.backend.to_str())
    saved = library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.max_length,
        model_input_names=_input_names(student),
        **special,
    )
    saved.save_pretrained(folder)
    # Wrong tokens would go unnoticed: the model still predicts, only worse.
    texts = datamodule.raw("test").texts[:COMPARED_TEXTS]
    expected, _ = tokenizer.pieces(texts)
    loaded = from_pretrained("AutoTokenizer", str(folder))
    for sample, (ids, _) in zip(texts, expected, strict=True):
        if loaded(*sample, truncation=True)["input_ids"] != ids:
            raise UserError(
                "the tokenizer that transformers loads gives other tokens than the "
                "student's; "
                "use --format onnx, torch-export or safetensors"
            )
