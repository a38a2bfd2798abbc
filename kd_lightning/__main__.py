"""Runs the `kd` command for `python -m kd_lightning`."""

from kd_lightning.cli import entry

entry()
