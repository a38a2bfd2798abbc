"""Old pickles of arrays, read without the power to run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from kd_lightning.errors import UserError

_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""All that these pickles may name; numbers, strings, lists and dicts need no names."""


class _Refused(pickle.UnpicklingError):
    pass


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        return _ADMITTED[module, name]


def read_arrays(path: Path, what: str) -> dict[str, Any]:
    """A pickled dict of arrays, lists, strings and numbers, as Python 2 wrote them; strings within it are bytes.

    Args:
        path: of the file.
        what: the data set, for messages.

    Raises:
        UserError: where the file names anything else, such as a function to call, or holds no such dict.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        return {
            key.decode() if isinstance(key, bytes) else str(key): value
            for key, value in content.items()
        }
    except _Refused as error:
        raise UserError(
            f"{what}: {path} asks for {error}, which could run code: it is not the original file; delete it"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise UserError(f"{what}: {path} cannot be read; delete it to download it again") from error
