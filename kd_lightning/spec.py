"""Whether what a network was trained on fits the data that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_lightning.errors import UserError


def _vocabulary(described: Mapping[str, Any] | None) -> str:
    if not described:
        return "no tokens"
    return f"{described['size']:,} tokens, vocabulary {described['sha256'][:8]}, at most {described['max_length']} a sample"


def check_vocabulary(
    owner: str, theirs: Mapping[str, Any] | None, data: Mapping[str, Any], tokens: Any
) -> None:
    """One line where a network was trained on other tokens than the data gives it."""
    if theirs and theirs.get("vocabulary", tokens) != tokens:
        raise UserError(
            f"{owner} reads {_vocabulary(theirs['vocabulary'])}, the data {data['data']} gives it {_vocabulary(tokens)}; "
            "set data.teacher_tokenizer (or data.tokenizer) to the one that it was trained with, "
            "its checkpoint as that one's argument `checkpoint` where the training sentences are others"
        )


def check_spec(owner: str, theirs: Mapping[str, Any] | None, data: Mapping[str, Any]) -> None:
    """One line where what a network was trained on does not fit the data: classes, their order, input shape, scaling."""
    if not theirs:
        return
    if theirs.get("num_classes", data["num_classes"]) != data["num_classes"]:
        raise UserError(
            f"{owner} knows {theirs['num_classes']} classes, the data {data['data']} has {data['num_classes']}"
        )
    for at, (a, b) in enumerate(
        zip(theirs.get("classes") or [], data.get("classes") or [], strict=False)
    ):
        if a != b:
            raise UserError(
                f"{owner} calls class {at} {a!r}, the data {data['data']} {b!r}: other classes, or another order"
            )
    check_vocabulary(owner, theirs, data, data.get("teacher_vocabulary", data.get("vocabulary")))
    for name, words in (
        ("input_shape", "inputs of shape"),
        ("mean", "inputs normalized by mean"),
        ("std", "inputs normalized by std"),
    ):
        if theirs.get(name, data.get(name)) != data.get(name):
            raise UserError(
                f"{owner} expects {words} {theirs[name]}, the data {data['data']} gives {data[name]}"
            )
