"""Reads old pickles of arrays without being able to run code from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from kd_lightning.errors import UserError

_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""All globals that these pickles may name. Numbers, strings, lists and dicts need none."""


class _ForbiddenGlobalError(pickle.UnpicklingError):
    """The pickle names a global that is not allowed."""


class _ArrayUnpickler(pickle.Unpickler):
    """Restores arrays, lists, strings and numbers only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _ForbiddenGlobalError(f"{module}.{name}")
        return _ALLOWED[module, name]


def read_arrays(path: Path, what: str) -> dict[str, Any]:
    """Read a pickled dict of arrays, lists, strings and numbers, as Python 2 wrote them.

    Args:
        path: path of the file.
        what: name of the data set, for messages.

    Returns:
        The dict. Its keys are str; other strings of Python 2 are bytes.

    Raises:
        UserError: if the file names anything else, such as a function, or holds no such dict.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        arrays = {}
        for key, value in content.items():
            name = key.decode() if isinstance(key, bytes) else str(key)
            arrays[name] = value
        return arrays
    except _ForbiddenGlobalError as error:
        raise UserError(
            f"{what}: {path} asks for {error}, which could run code: it is not the original file; "
            "delete it to download it again"
        ) from error
    # A damaged pickle may raise any exception, depending on its bytes.
    except Exception as error:
        raise UserError(
            f"{what}: {path} cannot be read; delete it to download it again"
        ) from error
