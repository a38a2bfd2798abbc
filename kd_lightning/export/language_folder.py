"""A causal language model as a folder that the transformers library loads alone."""

from __future__ import annotations

import copy
import json
from itertools import islice
from pathlib import Path
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from kd_lightning.data import TextCorpusDataModule
from kd_lightning.data.corpus.tokenizers import LanguageTokenizer
from kd_lightning.errors import UserError
from kd_lightning.export.examples import transformers_example
from kd_lightning.export.formats import Format, Predictor
from kd_lightning.export.student import TrainedStudent
from kd_lightning.hub import from_pretrained, library
from kd_lightning.models import CausalLanguageModel
from kd_lightning.models.language_model import attention_mask

AUTO_CLASS = "AutoModelForCausalLM"

COMPARED_DOCUMENTS = 64
"""Test documents whose tokens are compared."""

COMPARED_CHARACTERS = 10_000
"""The length of the part of each document that is compared."""


class _Config(Protocol):
    """The part of a configuration of transformers in use."""

    vocab_size: int


class _Model(Protocol):
    """The part of a causal language model of transformers in use."""

    config: _Config

    def save_pretrained(self, folder: Path) -> None:
        """Write the weights and the configuration."""

    def resize_token_embeddings(self, size: int, mean_resizing: bool) -> None:
        """Change the number of tokens."""


class LanguageModelFolder(Format):
    """Weights, configuration and tokenizer, as `save_pretrained` writes them.

    The tokenizer adds no token to a text, as in training.
    """

    file: ClassVar[str] = "model.safetensors"
    library: ClassVar[str] = "transformers"

    def __init__(self, input_names: tuple[str, ...]) -> None:
        self._input_names = input_names

    def write(self, student: TrainedStudent, folder: Path) -> None:
        network = student.module.net
        datamodule = student.datamodule
        assert isinstance(network, CausalLanguageModel)
        if not isinstance(datamodule, TextCorpusDataModule):
            raise UserError(
                f"--format transformers needs the tokenizer of a language model, and the data "
                f"{student.spec.data} has none; use --format safetensors"
            )
        model = cast(_Model, network.model)
        if model.config.vocab_size > network.num_classes:
            # Tokens that only fill up a vocabulary must not be generated.
            model = copy.deepcopy(model)
            model.resize_token_embeddings(network.num_classes, mean_resizing=False)
        model.save_pretrained(folder)
        if not (folder / self.file).is_file():
            raise UserError(
                "the student is so large that transformers writes several files; use "
                "--format safetensors"
            )
        write_tokenizer(datamodule.tokenizer, datamodule.length, folder)
        _check_tokens(datamodule, folder)

    def read(self, folder: Path) -> Predictor:
        model = from_pretrained(
            AUTO_CLASS, str(folder), use_safetensors=True, dtype=torch.float32
        )
        model.eval()

        def predict(raw: tuple[Tensor, ...]) -> Tensor:
            inputs = dict(zip(self._input_names, raw, strict=True))
            documents = inputs.pop("documents", None)
            # Transformers know documents that share a block as a mask alone.
            if documents is not None:
                inputs["attention_mask"] = attention_mask(documents, torch.float32)
            with torch.no_grad():
                logits: Tensor = model(**inputs, use_cache=False).logits
            return logits.softmax(-1)

        return predict

    def example(self, student: TrainedStudent) -> str:
        using = [
            "with torch.no_grad():",
            "    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)",
            "print(tokenizer.decode(ids[0]))",
        ]
        return transformers_example("Continues a text.", AUTO_CLASS, using)


def write_tokenizer(tokenizer: LanguageTokenizer, length: int, folder: Path) -> None:
    """Write a tokenizer that `AutoTokenizer.from_pretrained` loads.

    Args:
        tokenizer: that has learned its vocabulary.
        length: tokens that the model was trained to read in a block.
        folder: to write to.
    """
    state = json.loads(tokenizer.backend.to_str())
    # No token is added to a text: the model has never seen one.
    state["post_processor"] = None
    backend = library("tokenizers").Tokenizer.from_str(json.dumps(state))
    end = backend.id_to_token(tokenizer.end)
    saved = library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
    )
    saved.save_pretrained(folder)


def _check_tokens(datamodule: TextCorpusDataModule, folder: Path) -> None:
    """Compare the tokens of test documents with those that the written tokenizer gives.

    Raises:
        UserError: if they differ.
    """
    loaded = from_pretrained("AutoTokenizer", str(folder))
    for document in islice(datamodule.documents("test"), COMPARED_DOCUMENTS):
        text = document.text[:COMPARED_CHARACTERS]
        (expected,) = datamodule.tokenizer.encode([text])
        # Some texts are longer than a block, which is no mistake here.
        if loaded(text, verbose=False)["input_ids"] != expected:
            raise UserError(
                "the tokenizer that transformers loads gives other tokens than the student's; "
                "use --format safetensors"
            )
