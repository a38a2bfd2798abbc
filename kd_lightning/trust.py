"""Decides which Python code a file may name.

Code that the user names on the command line, or in a config or an experiment that the user passes,
is the user's own: its classes are imported wherever they come from. Checkpoints, teacher caches and
run folders may come from strangers. A class that such a file names is imported only if

- its package is one of `TRUSTED`,
- the user allows its package with `--trust PACKAGE` or the variable `KD_TRUST`, or
- its module is imported already, which happens if the user's own command names it.

Whoever names it, a callable is called only if it is a class of the type that is needed, or a
function that is annotated to return one. So no file can call `os.system` or `eval`.
"""

from __future__ import annotations

import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from kd_lightning.errors import UserError

TRUSTED = frozenset(
    {"kd_lightning", "lightning", "torch", "torchvision", "timm", "transformers"}
)
"""Packages whose classes any file may name."""

VARIABLE = "KD_TRUST"
"""Environment variable with further packages, separated by commas."""

T = TypeVar("T")

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

_NAMES_FILES = ("file", "files", "folder", "root", "checkpoint")
"""How the options end whose values are names of files, never classes."""

_allowed: set[str] = set()


def allow(package: str) -> None:
    """Let files name classes of a package, as `--trust PACKAGE` does.

    Args:
        package: its name in import statements.

    Raises:
        UserError: if this is not the name of a package.
    """
    if not package.isidentifier():
        raise UserError(
            f"--trust {package}: not the name of a package; give one such as my_package"
        )
    _allowed.add(package)


def take_trust_options(argv: list[str]) -> list[str]:
    """Allow the packages of all `--trust` options and return the other arguments.

    Args:
        argv: of any command.

    Raises:
        UserError: if an option has no value.
    """
    others = []
    remaining = iter(argv)
    for argument in remaining:
        if argument == "--trust":
            package = next(remaining, None)
            if package is None:
                raise UserError(
                    "--trust needs the name of a package, such as --trust my_package"
                )
            allow(package)
        elif argument.startswith("--trust="):
            allow(argument.removeprefix("--trust="))
        else:
            others.append(argument)
    return others


def is_allowed(class_path: str) -> bool:
    """Whether a file may name this class."""
    package = class_path.partition(".")[0]
    if package in _allowed or package in _allowed_by_variable():
        return True
    if package in TRUSTED:
        return not _is_shadowed(package)
    module = class_path.rpartition(".")[0]
    return module in sys.modules


def trusted_packages() -> str:
    """All packages that the user trusts, as `KD_TRUST` names them to another process."""
    return ",".join(sorted(_allowed | _allowed_by_variable()))


def _allowed_by_variable() -> set[str]:
    names = os.environ.get(VARIABLE, "").split(",")
    return {name.strip() for name in names if name.strip()}


def _is_shadowed(package: str) -> bool:
    """Whether a file of the current folder would be imported in place of a trusted package."""
    if package in sys.modules:
        return False
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return False
    origin = Path(spec.origin)
    holder = origin.parent
    if origin.name == "__init__.py":
        holder = origin.parent.parent
    return holder == Path.cwd()


def check_class_path(class_path: str, origin: str) -> None:
    """Refuse a class that a file names, before it is imported.

    Args:
        class_path: dotted path of a class or function.
        origin: the file that names it, for the message.

    Raises:
        UserError: if the class comes from a package that is not trusted.
    """
    # A path that imports nothing of the user's is left to `import_factory`, which says so.
    if is_allowed(class_path) or not _may_import(class_path):
        return
    package = class_path.partition(".")[0]
    raise UserError(
        f"{origin} names the class {class_path!r}, which would run code of {package!r}; if you "
        f"trust that package, repeat the command with --trust {package}"
    )


def check_config(config: object, origin: str) -> None:
    """Refuse a config of a run folder if one of its values names code that is not trusted.

    Any dotted text may name a class, because a config may give a class without arguments by its
    path alone. Text that names no module of this machine is no class, nor is the value of an
    option for a file, such as `train_file: train.tsv` beside a `train.py`.

    Args:
        config: nested dicts, lists and plain values, as read from YAML.
        origin: the file, for the message.

    Raises:
        UserError: for the first such value.
    """
    for text in _texts(config):
        if _DOTTED.fullmatch(text):
            check_class_path(text, origin)


def _texts(config: object) -> Iterator[str]:
    """All texts in a nested config, without the keys and the values that name files."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for key, value in config.items():
            if not str(key).endswith(_NAMES_FILES):
                yield from _texts(value)
    elif isinstance(config, list):
        for item in config:
            yield from _texts(item)


def _may_import(text: str) -> bool:
    """Whether the first part of a dotted text is a module outside the standard library."""
    package = text.partition(".")[0]
    if package in sys.stdlib_module_names:
        return False
    # Looking up a module without a dot imports nothing.
    return package in sys.modules or (
        package.isidentifier() and find_spec(package) is not None
    )


def import_factory(class_path: str, base: type[T], kind: str) -> Callable[..., T]:
    """Import a class below `base`, or a function annotated to return one.

    Args:
        class_path: dotted path.
        base: the type that a call must yield.
        kind: what the class is for, such as "network", for the message.

    Raises:
        UserError: if the path cannot be imported, or names anything else.
    """
    module, _, name = class_path.rpartition(".")
    # The import runs code of the package, which can raise anything.
    try:
        factory = getattr(import_module(module), name)
        is_factory = makes(factory, base)
    except Exception as error:
        raise UserError(
            f"the {kind} {class_path!r} cannot be imported ({error}); is its package installed?"
        ) from error
    if not is_factory:
        raise UserError(
            f"{class_path!r} is not {_article(base)} class or a function annotated to return one"
        )
    return typing.cast(Callable[..., T], factory)


def makes(candidate: object, base: type) -> bool:
    """Whether a candidate is a class below `base`, or a function annotated to return one.

    Args:
        candidate: whatever a path led to.
        base: the type that a call must yield.
    """
    if isinstance(candidate, type):
        return issubclass(candidate, base)
    if not callable(candidate):
        return False
    # Annotations may be texts, which this evaluates.
    returned = typing.get_type_hints(candidate).get("return")
    return isinstance(returned, type) and issubclass(returned, base)


def _article(base: type) -> str:
    """The name of a type with its article, as messages need it."""
    name = "nn.Module" if base.__name__ == "Module" else base.__name__
    # The n of nn.Module is spoken as a vowel.
    article = "an" if name[0] in "aeioAEIOn" else "a"
    return f"{article} {name}"
