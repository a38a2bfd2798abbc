"""Builds the reader of new samples that an export describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from kd_lightning.data.corpus.prompts import PromptReader
from kd_lightning.data.corpus.tokenizers import BytePairTokenizer
from kd_lightning.data.images.new_samples import ImageReader
from kd_lightning.data.new_samples import InputReader
from kd_lightning.data.speech.new_samples import RecordingReader
from kd_lightning.data.tabular.features import FeatureEncoder
from kd_lightning.data.tabular.new_samples import RowReader
from kd_lightning.data.text.new_samples import TextReader
from kd_lightning.data.text.tokenizers import Tokenizer
from kd_lightning.errors import UserError
from kd_lightning.trust import check_class_path, import_factory
from kd_lightning.values import Values


def reader_of(described: Values, owner: str) -> InputReader:
    """The reader whose `describe` returned these values.

    Args:
        described: read from a file.
        owner: what an error message calls the file.

    Raises:
        UserError: if no reader is described that way.
    """
    values = dict(described)
    kind = values.pop("kind", None)
    try:
        if kind == ImageReader.kind:
            return ImageReader(**values)  # type: ignore[arg-type]
        if kind == RowReader.kind:
            features = cast(Sequence[Values], values["features"])
            return RowReader(FeatureEncoder.from_state(features))
        if kind == TextReader.kind:
            tokenizer = _tokenizer(cast(Values, values["tokenizer"]), owner)
            return TextReader(tokenizer, bool(values["pairs"]), whole_length=True)
        if kind == PromptReader.kind:
            # The state holds the whole vocabulary, whatever class learned it.
            restored = BytePairTokenizer()
            restored.restore(cast(Values, values["tokenizer"]))
            return PromptReader(restored)
        if kind == RecordingReader.kind:
            return RecordingReader()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{owner}: its reader of {kind} is damaged") from error
    raise UserError(f"{owner} names an unknown reader {kind!r}; export the run again")


def _tokenizer(described: Values, owner: str) -> Tokenizer:
    """The tokenizer that `rebuilt_from` described."""
    class_path = str(described["class_path"])
    check_class_path(class_path, owner)
    factory = import_factory(class_path, Tokenizer, "tokenizer")  # type: ignore[type-abstract]
    tokenizer = factory(**cast(Values, described["init_args"]))
    tokenizer.restore(cast(Values, described["state"]))
    return tokenizer
