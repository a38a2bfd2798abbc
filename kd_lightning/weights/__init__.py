"""Reads weights and checkpoints without running code from them, and checks that they fit."""

from kd_lightning.weights.checksums import sha256_of, weights_sha256
from kd_lightning.weights.entries import network_weights
from kd_lightning.weights.fitting import (
    check_weights,
    fitting_weights,
    load_file_weights,
    load_weights,
    without_other_head,
)
from kd_lightning.weights.metadata import KEY, check_lightning_entries, plain
from kd_lightning.weights.reading import read_file, split_choice
from kd_lightning.weights.torchvision_weights import (
    is_torchvision_name,
    torchvision_download,
    torchvision_enum,
    torchvision_weights,
)

__all__ = [
    "KEY",
    "check_lightning_entries",
    "check_weights",
    "fitting_weights",
    "is_torchvision_name",
    "load_file_weights",
    "load_weights",
    "network_weights",
    "plain",
    "read_file",
    "sha256_of",
    "split_choice",
    "torchvision_download",
    "torchvision_enum",
    "torchvision_weights",
    "weights_sha256",
    "without_other_head",
]
