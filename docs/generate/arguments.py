"""Tables of the arguments of classes, from their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from docstring_parser import DocstringStyle, parse

from docs.generate.markdown import cell, table

NO_DEFAULT = "required"
"""What the table says of an argument that must be given."""


@dataclass(frozen=True)
class Argument:
    """One argument of a class.

    Attributes:
        name: as in YAML and on the command line.
        type: the annotation as the source has it; empty if there is none.
        default: the default as Python code, or "required".
        meaning: from the docstring; empty if it does not describe the argument.
    """

    name: str
    type: str
    default: str
    meaning: str


def arguments_of(cls: type) -> list[Argument]:
    """The arguments of a class's constructor, those of its bases included.

    A constructor with `**kwargs` passes them to the next class of the method resolution order, so
    the arguments of that class follow.

    Args:
        cls: any class with typed arguments.
    """
    meanings = _meanings(cls)
    arguments: dict[str, Argument] = {}
    for parameter in _parameters(cls):
        # A class's own argument hides that of its base.
        if parameter.name in arguments:
            continue
        default = NO_DEFAULT
        if parameter.default is not inspect.Parameter.empty:
            default = _default_text(parameter.default)
        arguments[parameter.name] = Argument(
            parameter.name,
            _type_text(parameter),
            default,
            meanings.get(parameter.name, ""),
        )
    return list(arguments.values())


def _parameters(cls: type) -> Iterator[inspect.Parameter]:
    """The parameters of a class and of the bases that receive its `**kwargs`."""
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        forwards = False
        signature = inspect.signature(vars(owner)["__init__"])
        for parameter in list(signature.parameters.values())[1:]:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                forwards = True
            elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                yield parameter
        if not forwards:
            return


def _meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about arguments, by name."""
    meanings: dict[str, str] = {}
    for owner in cls.__mro__:
        # Classes of other packages document their arguments in other styles.
        if not owner.__module__.startswith("kd_lightning"):
            continue
        parsed = parse(vars(owner).get("__doc__") or "", DocstringStyle.GOOGLE)
        for entry in parsed.params:
            # One entry may describe several arguments: `optimizer, scheduler: see ...`.
            for name in entry.arg_name.split(","):
                text = " ".join((entry.description or "").split())
                meanings.setdefault(name.strip(), text)
    return meanings


def _default_text(value: object) -> str:
    """A default as code; functions and classes by their names."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__name__
    text = repr(value)
    # Objects without a readable representation print their address.
    return type(value).__name__ if " at 0x" in text else text


def _type_text(parameter: inspect.Parameter) -> str:
    """The annotation of a parameter as the source has it."""
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return ""
    return (
        annotation
        if isinstance(annotation, str)
        else inspect.formatannotation(annotation)
    )


def code(text: str) -> str:
    """Text in code style; empty text stays empty."""
    return f"`{cell(text)}`" if text else ""


def arguments_table(cls: type) -> list[str]:
    """The lines of a table of a class's arguments; a sentence if it has none.

    Args:
        cls: any class with typed arguments.
    """
    arguments = arguments_of(cls)
    if not arguments:
        return ["No arguments."]
    rows = []
    for argument in arguments:
        default = argument.default
        if default != NO_DEFAULT:
            default = code(default)
        name = code(argument.name)
        rows.append([name, code(argument.type), default, argument.meaning])
    return table(["argument", "type", "default", "meaning"], rows)


def body_of(cls: type) -> list[str]:
    """The paragraphs of a class's docstring before its arguments, as Markdown lines.

    Args:
        cls: any class with a docstring.
    """
    paragraphs = []
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        if re.match(
            r"(Args|Returns|Raises|Attributes|Example|Class attributes):", paragraph
        ):
            break
        paragraphs += [paragraph, ""]
    return paragraphs
