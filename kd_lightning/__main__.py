"""`python -m kd_lightning` is `kd`."""

from kd_lightning.cli import entry

entry()
