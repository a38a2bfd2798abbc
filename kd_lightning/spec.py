"""What networks, teachers and checkpoints need to know about the data, and whether two such specs fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias, TypedDict, cast

from kd_lightning.errors import UserError
from kd_lightning.values import Value, Values

SYNSET = re.compile(r"n\d{8}")
"""A WordNet synset id, such as n01440764."""

IMAGENET_CLASSES = 1000

IMAGENET_FIRST_CLASS = "tench"
"""The name of class 0, the synset n01440764."""

MOST_SHOWN = 4
"""The most values per input that a message shows in full; a table may have hundreds of columns."""


@dataclass(frozen=True)
class InputSpec:
    """One tensor of a mapping of inputs, such as `input_ids`.

    Attributes:
        shape: of one sample, without the batch dimension.
        value: the integer that fills a blank sample.
    """

    shape: tuple[int, ...]
    value: int


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a network reads.

    Attributes:
        size: number of token ids.
        pad: id of the padding token.
        max_length: tokens per sample; longer samples are cut.
        sha256: checksum of the tokens and their ids.
    """

    size: int
    pad: int
    max_length: int
    sha256: str

    def __str__(self) -> str:
        return (
            f"{self.size:,} tokens, vocabulary {self.sha256[:8]}, "
            f"at most {self.max_length} per sample"
        )


class SpecialistInfo(TypedDict):
    """The share of a data set that a specialist is trained on (Hinton et al. 2015, section 5)."""

    number: int
    of: int
    class_ids: list[int]
    oversampling: float
    generalist: str


@dataclass(frozen=True)
class Spec:
    """A description of a data set in plain values; every checkpoint stores one.

    Users never type shapes: networks receive `num_classes`, `input_shape` and `spec` from here.

    Attributes:
        data: name of the data set.
        task: name of the task; see `kd_lightning.tasks`.
        input_shape: of one sample, `(C, H, W)` for images.
        num_classes: K, the width of a network's output; 0 if unknown.
        classes: names of the classes, class 0 first.
        samples: number of samples in "train", "validation" and "test".
        source_samples: rows of the training split before any subset; the range of `Batch.index`.
        target_shape: S, the shape of one sample's target; `()` for one label per sample.
        mean, std: per channel, of pixel values in [0, 1]; inputs are normalized with them.
        inputs, teacher_inputs: the tensors of a sample, if inputs are a mapping.
        vocabulary, teacher_vocabulary: the tokens that the student and the teacher read.
        cut, teacher_cut: per split, how many samples were longer than the vocabulary's maximum.
        specialist: set if the data is a specialist's share of another data set.
    """

    data: str = ""
    task: str = "classification"
    input_shape: tuple[int, ...] | None = None
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    samples: Mapping[str, int] = field(default_factory=dict)
    source_samples: int = 0
    target_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    inputs: Mapping[str, InputSpec] | None = None
    teacher_inputs: Mapping[str, InputSpec] | None = None
    vocabulary: Vocabulary | None = None
    teacher_vocabulary: Vocabulary | None = None
    cut: Mapping[str, int] | None = None
    teacher_cut: Mapping[str, int] | None = None
    specialist: SpecialistInfo | None = None

    def to_dict(self) -> dict[str, Value]:
        """Plain values for a checkpoint, without the fields that are not set."""
        plain: dict[str, Value] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                plain[item.name] = _to_plain(value)
        return plain

    @classmethod
    def from_dict(cls, plain: Values) -> Spec:
        """The spec that `to_dict` described; fields of other versions are ignored."""
        # Plain values first, then those of the fields' own types.
        values: dict[str, Value | Vocabulary | dict[str, InputSpec]] = {}
        for item in fields(cls):
            value = plain.get(item.name)
            if value is not None:
                values[item.name] = value
        # A checkpoint holds lists, but a spec must be immutable.
        for name in ("input_shape", "classes", "target_shape", "mean", "std"):
            if name in values:
                items = cast(Sequence[Value], values[name])
                values[name] = tuple(items)
        for name in ("inputs", "teacher_inputs"):
            if name in values:
                descriptions = cast(Mapping[str, _InputDescription], values[name])
                values[name] = _input_specs(descriptions)
        for name in ("vocabulary", "teacher_vocabulary"):
            if name in values:
                described = cast(Values, values[name])
                values[name] = Vocabulary(**described)  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]

    def for_teacher(self) -> Spec:
        """The same data in the encoding that the teacher reads, which may differ from the student's."""
        return replace(
            self,
            inputs=self.teacher_inputs or self.inputs,
            vocabulary=self.teacher_vocabulary or self.vocabulary,
            cut=self.teacher_cut or self.cut,
        )


FieldValue: TypeAlias = "InputSpec | Vocabulary | Mapping[str, FieldValue] | Value"
"""What a field of a spec may hold, at any depth."""


class _InputDescription(TypedDict):
    """An InputSpec in plain values."""

    shape: list[int]
    value: int


def _input_specs(
    descriptions: Mapping[str, _InputDescription],
) -> dict[str, InputSpec]:
    """The inputs that `_to_plain` described, by name."""
    specs = {}
    for name, description in descriptions.items():
        shape = tuple(description["shape"])
        specs[name] = InputSpec(shape, int(description["value"]))
    return specs


def _to_plain(value: FieldValue) -> Value:
    """Builtins alone, so that a checkpoint loads without running code."""
    if isinstance(value, InputSpec):
        return {"shape": list(value.shape), "value": value.value}
    if isinstance(value, Vocabulary):
        return dict(vars(value))
    if isinstance(value, Mapping):
        plain = {}
        for name, item in value.items():
            plain[str(name)] = _to_plain(item)
        return plain
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value


def check_vocabulary(
    owner: str,
    trained_on: Spec | None,
    data: Spec,
    tokens: Vocabulary | None,
) -> None:
    """Refuse a network that was trained on other tokens than the data provides.

    Args:
        owner: what the message calls the network.
        trained_on: the spec of the data that the network was trained on, if it is known.
        data: the spec of the data that the network will read.
        tokens: the tokens that this data provides to the network.

    Raises:
        UserError: if the vocabularies differ.
    """
    # Without a recorded vocabulary there is nothing to compare.
    known = trained_on.vocabulary if trained_on is not None else None
    if known is None or known == tokens:
        return
    raise UserError(
        f"{owner} reads {known}; the data {data.data} provides "
        f"{tokens or 'no tokens'}. Set data.teacher_tokenizer (or data.tokenizer) to the tokenizer "
        "that the network was trained with; if the training sentences differ, pass the network's "
        "checkpoint as the tokenizer's argument `checkpoint`"
    )


def check_spec(
    owner: str,
    trained_on: Spec | None,
    data: Spec,
    inputs: bool = True,
    predicts: bool = True,
) -> None:
    """Refuse a network that was trained on data of another kind: task, classes, inputs or scaling.

    Args:
        owner: what the message calls the network.
        trained_on: the spec of the data that the network was trained on, if it is known.
        data: the spec of the data that the network will read.
        inputs: whether to compare shape and scaling of the inputs; not if they are adapted.
        predicts: whether to compare task and classes; not if only features are read.

    Raises:
        UserError: one line that names the first difference.
    """
    if trained_on is None:
        return
    if predicts:
        _check_predictions(owner, trained_on, data)
    check_vocabulary(owner, trained_on, data, data.for_teacher().vocabulary)
    if not inputs:
        return
    _check_same(
        owner, "inputs of shape", trained_on.input_shape, data.input_shape, data.data
    )
    _check_same(
        owner, "inputs normalized by mean", trained_on.mean, data.mean, data.data
    )
    _check_same(owner, "inputs normalized by std", trained_on.std, data.std, data.data)


def _check_predictions(owner: str, trained_on: Spec, data: Spec) -> None:
    """Refuse another task, or other classes."""
    if trained_on.task != data.task:
        raise UserError(
            f"{owner} was trained for {trained_on.task}, the data {data.data} is for {data.task}"
        )
    if trained_on.num_classes not in (0, data.num_classes):
        raise UserError(
            f"{owner} knows {trained_on.num_classes} classes, "
            f"the data {data.data} has {data.num_classes}"
        )
    if not _same_by_synset_order(trained_on.classes, data.classes):
        _check_classes(owner, trained_on, data)


def _check_classes(owner: str, trained_on: Spec, data: Spec) -> None:
    # A spec may have no class names, and then there is nothing to compare.
    pairs = zip(trained_on.classes, data.classes, strict=False)
    for class_id, (known, given) in enumerate(pairs):
        if known != given:
            raise UserError(
                f"{owner} calls class {class_id} {known!r}, the data {data.data} calls it "
                f"{given!r}: the classes or their order differ"
            )


def _same_by_synset_order(known: tuple[str, ...], given: tuple[str, ...]) -> bool:
    """Whether classes are those of ImageNet, once by name and once by WordNet's synset ids.

    ImageNet's folders are named by synsets, and its 1,000 classes are numbered in their order. The
    names do not identify the classes: both a bird and a machine are called "crane".
    """
    if len(known) != IMAGENET_CLASSES or len(given) != IMAGENET_CLASSES:
        return False
    begins_as_imagenet = known[0].startswith(IMAGENET_FIRST_CLASS)
    all_synsets = all(SYNSET.fullmatch(name) for name in given)
    return begins_as_imagenet and all_synsets and list(given) == sorted(given)


def _check_same(
    owner: str,
    what: str,
    expected: tuple[float, ...] | None,
    given: tuple[float, ...] | None,
    data: str,
) -> None:
    # A value that is not set fits all data.
    if expected is None or expected == given:
        return
    if given is None:
        raise UserError(
            f"{owner} expects {what} {list(expected)}, the data {data} gives None"
        )
    is_long = len(expected) > MOST_SHOWN
    if not is_long or len(given) != len(expected):
        raise UserError(
            f"{owner} expects {what} {list(expected)}, the data {data} gives {list(given)}"
        )
    # Of many values, the message shows the first that differs.
    differing = []
    for position, value in enumerate(expected):
        if value != given[position]:
            differing.append(position)
    first = differing[0]
    raise UserError(
        f"{owner} expects {what} {expected[first]} at position {first}, the data {data} "
        f"gives {given[first]}; {len(differing)} of {len(expected)} values differ"
    )
