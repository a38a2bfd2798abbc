"""Loads a function that an experiment's YAML names: one of a module, or of a file beside the YAML."""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from kd_lightning.errors import UserError


def resolve_function(name: str, folder: Path) -> str:
    """Make the path of a function's file absolute.

    Args:
        name: `analysis/speech.py:recognition`, or a dotted path, which is returned unchanged.
        folder: the folder of the YAML, which file paths are relative to.

    Raises:
        UserError: if the file does not exist.
    """
    # From the right: a path on Windows contains a colon of its own.
    file, colon, function = name.rpartition(":")
    if not colon:
        return name
    path = folder / file
    if not path.is_file():
        raise UserError(
            f"{name}: there is no file {path}; the path is relative to the experiment's YAML"
        )
    return f"{path}:{function}"


def load_function(name: str) -> Any:
    """Load a function by its dotted path, or by `/absolute/path.py:function`.

    Raises:
        ImportError, ValueError: if the module cannot be imported.
        AttributeError: if the module has no such function.
        TypeError: if a function of a dotted path is not annotated to return `list[Row]`, as an
            analysis is. So an experiment cannot call any function that it names, such as
            `os.system`.
    """
    file, colon, function_name = name.rpartition(":")
    if colon:
        return getattr(_load_file(Path(file)), function_name)
    module, _, function_name = name.rpartition(".")
    function = getattr(import_module(module), function_name)
    if not isinstance(function, FunctionType) or not _returns_rows(function):
        raise TypeError(
            "not an analysis: a function that is annotated to return list[Row]"
        )
    return function


def _returns_rows(function: FunctionType) -> bool:
    returned = function.__annotations__.get("return")
    # `from __future__ import annotations` leaves the annotation as text.
    return (
        str(returned).replace("kd_lightning.experiments.analysis.", "") == "list[Row]"
    )


def _load_file(path: Path) -> ModuleType:
    """Import a Python file under a name that no other file has.

    The file's folder becomes its package, so the file can import its siblings with
    `from .other import name`.
    """
    package = _package_of(path.parent)
    name = f"{package}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = module_from_spec(spec)
    # Dataclasses look up their module while it is still being executed.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        # As Python's own import does: a second attempt must not find half a module.
        del sys.modules[name]
        raise
    return module


def _package_of(folder: Path) -> str:
    """Register a package whose modules are the files of a folder, and return its name."""
    # Two folders may have the same name, so the name is that of the whole path.
    location = str(folder.resolve())
    digest = hashlib.sha256(location.encode()).hexdigest()
    name = f"_kd_lightning_files_{digest[:16]}"
    if name not in sys.modules:
        spec = ModuleSpec(name, loader=None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = module_from_spec(spec)
    return name
