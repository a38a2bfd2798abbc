"""Turns the errors of jsonargparse and Lightning about a config into one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kd_lightning.errors import UserError

_KEY = re.compile(r'Parser key "([^"]+)":?\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_TYPE = re.compile(r"Expected an? <class '([\w.]+)'>")
_CHOICE = re.compile(r"Expected a typing\.Literal\[(.*)\]")
_VALUE = re.compile(r"^Given value: (.{1,60})$")
_NESTED_VALUE = re.compile(r"NestedArg\(key='([^']+)', val=(.*)\)$")
_CALLABLE = re.compile(r"^Type .* expects a function or a callable class: (.*)$")
_GOT_CLASS = re.compile(r"\. Got value: Namespace\(class_path='([\w.]+)'.*$")
_NO_IMPORT = "Expected a dot import path"
_MAX_LENGTH = 500
_OTHER_CLASSES = re.compile(
    r"The parameter 'num_classes' expected value (\d+) but got (\d+) instead"
)
"""torchvision's words for a number of classes that its weights do not have."""

_NOISE = re.compile(
    r"^(Subtypes:|Given value|Does not validate|Errors:|Expected a path but"
    r"|Traceback|File )"
)


@dataclass
class _Collected:
    """What the lines of an error hold; a line may hold a key, a class, a value or a problem.

    Attributes:
        keys: the keys on the way to the problem, the outermost one first.
        classes: their classes, in the same order.
        key_problems: what was wrong with a key.
        other_problems: what was wrong with something else.
        value: the first value that was given.
        nested: the longest key below the outermost one, and its value.
    """

    keys: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    key_problems: list[str] = field(default_factory=list)
    other_problems: list[str] = field(default_factory=list)
    value: str | None = None
    nested: re.Match[str] | None = None

    def add(self, line: str) -> None:
        """Collect what a line holds."""
        given = _VALUE.match(line)
        if given is not None:
            self._add_value(given[1])
        key = _KEY.match(line)
        class_path = _CLASS.match(line)
        if key is not None:
            self.keys.append(key[1])
            if key[2]:
                self.key_problems.append(key[2])
        elif class_path is None and _NOISE.match(line) is None:
            self.other_problems.append(_GOT_CLASS.sub("", line))
        if class_path is not None:
            self.classes.append(class_path[1])
        # The class of an optimizer or a scheduler.
        got_class = _GOT_CLASS.search(line)
        if got_class is not None:
            self.classes.append(got_class[1])

    def _add_value(self, value: str) -> None:
        """Note the first value, and the longest key in any of them."""
        if self.value is None:
            self.value = value
        argument = _NESTED_VALUE.match(value)
        if argument is None:
            return
        # The longest key is the one below the outermost key.
        if self.nested is None or len(argument[1]) > len(self.nested[1]):
            self.nested = argument


def one_line(message: str) -> str:
    """The problem, with the key and the class that it is about in front.

    jsonargparse nests an error as deep as the config and describes every type that it tried. The
    innermost line of the first branch names the problem.

    Args:
        message: of any error, such as jsonargparse's over several lines.
    """
    collected = _Collected()
    for line in _lines(message):
        collected.add(line)
    keys = collected.keys
    value = collected.value
    nested = collected.nested
    if nested is not None:
        # The value then holds the whole path below the outermost key.
        keys = [*keys[:1], nested[1]]
        value = nested[2].strip("'")
    problems = collected.key_problems + collected.other_problems
    parts = [".".join(keys)] if keys else []
    # The last class is the innermost one.
    parts.extend(collected.classes[-1:])
    parts.append(_problem(problems, value, has_key=bool(keys)))
    text = ": ".join(parts)
    # A value may be of any length.
    if len(text) <= _MAX_LENGTH:
        return text
    return f"{text[:_MAX_LENGTH]}..."


def _lines(message: str) -> list[str]:
    """The lines that are not empty, without the marks of lists and the types of callables."""
    lines = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        callable_problem = _CALLABLE.match(text)
        if callable_problem is not None:
            text = callable_problem[1]
        if text:
            lines.append(text)
    return lines


def _problem(lines: list[str], value: str | None, has_key: bool) -> str:
    """Summarize the lines that describe a problem.

    Args:
        lines: without keys and classes.
        value: that was given.
        has_key: whether the key is known.
    """
    types = []
    choices: list[str] = []
    others = []
    not_imported = []
    for line in lines:
        if line.startswith(_NO_IMPORT):
            not_imported.append(line)
            continue
        expected_type = _TYPE.match(line)
        if expected_type is not None and expected_type[1] != "NoneType":
            types.append(expected_type[1])
        if expected_type is None or "Got value" in line:
            others.append(line)
        choice = _CHOICE.match(line)
        if choice is not None:
            choices.extend(choice[1].split(", "))
    # Every type of a union that is no class complains about the import path.
    if not types and not others:
        others = not_imported
    got = f", got {value!r}" if value else ""
    if choices and all(_CHOICE.match(line) for line in others):
        expected = ", ".join(dict.fromkeys(choices))
        # Without a value of its own, the line ends in what was given.
        given = got or others[0].rpartition("]")[2]
        problem = f"expected one of {expected}{given}"
    elif others:
        problem = others[0] if has_key else " ".join(others)
    elif types:
        problem = f"expected {' or '.join(types)}{got}"
    else:
        problem = "unknown error"
    return _TYPE.sub(r"expected \1", problem).replace(". Got value: ", ", got ")


@contextmanager
def config_errors() -> Iterator[None]:
    """Raise errors of other libraries about a wrong setting as a UserError in one line."""
    try:
        yield
    except UserError:
        raise
    except (
        ArgumentError,
        ValueError,
        TypeError,
        MisconfigurationException,
        OSError,
    ) as error:
        other_classes = _OTHER_CLASSES.search(str(error))
        if other_classes is not None:
            raise UserError(
                f"the pretrained weights are for {other_classes[1]} classes, the data has "
                f"{other_classes[2]}; remove the argument weights and fine-tune them with "
                "--model.init_from=NAME of the weights, such as ResNet18_Weights.DEFAULT"
            ) from error
        raise UserError(one_line(str(error))) from error
    except ModuleNotFoundError as error:
        # Only an import knows the module's name. Without one, a library refuses a setting that
        # needs an optional package, such as --trainer.precision=transformer-engine.
        if error.name is not None:
            raise
        raise UserError(
            f"a setting needs a package that is not installed: {one_line(str(error))}"
        ) from error
