"""Reads YAML safely: values only, bounded in size and depth, without duplicate keys."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import UserError

if TYPE_CHECKING:
    from yaml import MarkedYAMLError, Node, YAMLError

YamlValue = bool | int | float | str | list["YamlValue"] | dict[str, "YamlValue"] | None
"""What a YAML file may hold."""

MAX_BYTES = 10_000_000
"""The largest file that is read."""

MAX_DEPTH = 64
"""How deep lists and mappings may be nested."""

MAX_VALUES = 200_000
"""How many values a text may hold, with each alias counted like the values that it stands for."""

_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_INT = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT = re.compile(
    r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN))$"
)


@cache
def _loader() -> type[Any]:
    """PyYAML's safe loader without dates, numbers to base 60, sets and binary data."""
    import yaml

    # The C loader is much faster, but PyYAML is not always built with it.
    base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    loader: type[Any] = type("Loader", (base,), {})
    resolvers: dict[str, list[Any]] = {}
    for first, pairs in base.yaml_implicit_resolvers.items():
        kept = (f"{_TAG}null", f"{_TAG}bool", f"{_TAG}merge")
        resolvers[first] = [pair for pair in pairs if pair[0] in kept]
    loader.yaml_implicit_resolvers = resolvers
    # As in YAML 1.2, 1e-3 is a number and 1:30 is text.
    loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
    loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))

    constructors = {}
    for kind in _KINDS:
        constructors[f"{_TAG}{kind}"] = base.yaml_constructors[f"{_TAG}{kind}"]
    loader.yaml_constructors = constructors
    loader.add_constructor(f"{_TAG}int", _construct_int)
    # Whatever has another tag.
    loader.add_constructor(None, _refuse_tag)
    return loader


def _refuse_tag(loader: Any, node: Any) -> None:
    tag = str(node.tag).replace(_TAG, "!!")
    raise _error(node, f"the tag {_shortened(tag)} is not allowed; write plain values")


def _construct_int(loader: Any, node: Any) -> int:
    """A whole number of 64 bits; others would slow down or stop whoever computes with it."""
    text = str(node.value)
    # 64 binary digits with a sign and a prefix; more digits could not be converted quickly.
    value = (
        loader.construct_yaml_int(node)
        if len(text) <= 67 and ":" not in text
        else 2**63
    )
    if abs(value) >= 2**63:
        raise _error(node, f"the number {_shortened(text)} is out of range")
    return int(value)


def _shortened(text: str) -> str:
    if len(text) <= 30:
        return text
    return f"{text[:27]}..."


def _error(node: Node, problem: str) -> YAMLError:
    import yaml

    return yaml.constructor.ConstructorError(
        problem=problem, problem_mark=node.start_mark
    )


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Args:
        text: one document. Its values are those of JSON, and the special floats.

    Raises:
        yaml.YAMLError: if the text is not YAML, or if it holds a duplicate key, another tag, an
            alias within its own value, a number of more than 64 bits, or too many or too deeply
            nested values.
    """
    import yaml

    try:
        loader = _loader()(text)
    except UnicodeEncodeError as error:
        raise yaml.YAMLError("it holds characters that are not Unicode") from error
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _Limits().check(root, depth=1)
        return loader.construct_document(root)
    except (RecursionError, UnicodeEncodeError, ValueError, TypeError) as error:
        if isinstance(error, RecursionError):
            raise yaml.YAMLError("its values are nested too deeply") from error
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


class _Limits:
    """Checks the nodes of a text before any value is constructed."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def check(self, node: Any, depth: int) -> tuple[int, int]:
        """Check a node.

        Args:
            node: of the graph that the loader composed; aliases are edges to one node.
            depth: of the node, from 1.

        Returns:
            The number of values at and below the node, and its height.
        """
        identity = id(node)
        if identity in self._open:
            raise _error(node, "the value refers to itself")
        if identity in self._sizes:
            size, height = self._sizes[identity]
        else:
            self._open.add(identity)
            size, height = self._measure(node, depth)
            self._open.discard(identity)
            self._sizes[identity] = (size, height)
        if depth + height - 1 > MAX_DEPTH:
            raise _error(
                node, f"lists and mappings are nested more than {MAX_DEPTH} deep"
            )
        if size > MAX_VALUES:
            raise _error(node, f"it stands for more than {MAX_VALUES:,} values")
        return size, height

    def _measure(self, node: Any, depth: int) -> tuple[int, int]:
        # Before descending, because Python's own depth is limited, too.
        if depth > MAX_DEPTH:
            raise _error(
                node, f"lists and mappings are nested more than {MAX_DEPTH} deep"
            )
        if node.id == "scalar":
            return 1, 1
        children = node.value
        if node.id == "mapping":
            _refuse_duplicates(node)
            children = [value for _, value in node.value]
        size = 1
        height = 0
        for child in children:
            child_size, child_height = self.check(child, depth + 1)
            size += child_size
            height = max(height, child_height)
        return size, height + 1


def _refuse_duplicates(mapping: Any) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if key.id != "scalar":
            raise _error(key, "a key must be text, not a list or a mapping")
        identity = (key.tag, key.value)
        if identity in lines:
            raise _error(
                key,
                f"the key {_shortened(key.value)!r} stands in line {lines[identity]} already",
            )
        lines[identity] = key.start_mark.line + 1


def read_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; see `parse_yaml`.

    Args:
        text: one document.
        name: what an error message calls the text, such as "the config file x.yaml".

    Raises:
        UserError: if the text is refused.
    """
    import yaml

    try:
        return parse_yaml(text)
    except yaml.constructor.ConstructorError as error:
        # YAML of which a part is refused.
        raise UserError(f"{name}{_place(error)}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        context = f"{error.context}, " if error.context else ""
        raise UserError(
            f"{name} is not YAML{_place(error)}: {context}{error.problem}"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {error}") from None


def _place(error: MarkedYAMLError) -> str:
    return f", line {error.problem_mark.line + 1}" if error.problem_mark else ""


def read_yaml_file(path: Path, name: str) -> Any:
    """The value of a YAML file; see `parse_yaml`.

    Args:
        path: of the file.
        name: what an error message calls the file.

    Raises:
        UserError: if the file cannot be read or is refused.
    """
    if not path.is_file():
        # A pipe or a device would never end.
        raise UserError(f"{name} is not a file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{name} is larger than {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not YAML: it is not UTF-8 ({error.reason})"
        ) from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    return read_yaml(text, name)
