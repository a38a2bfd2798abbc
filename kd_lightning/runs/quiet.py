"""Hides messages of other libraries that a user need not act on."""

from __future__ import annotations

import logging
import os
import warnings

from lightning.fabric.utilities.warnings import PossibleUserWarning

_LIBRARIES = r"(lightning|torchmetrics|jsonargparse|torch)(\..*)?"
"""Warnings of these modules are hidden; those of users' own modules are not."""


def quiet() -> None:
    """Hide log messages and warnings of Lightning, torchmetrics, jsonargparse and torch."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", module=_LIBRARIES)
    # Lightning attributes its hints about settings to the caller of the Trainer.
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
