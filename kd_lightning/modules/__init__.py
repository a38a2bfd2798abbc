"""LightningModules: one trains on labels, the other against a teacher."""

from kd_lightning.modules.base import BaseModule
from kd_lightning.modules.classifier import ClassifierModule
from kd_lightning.modules.distillation import DistillationModule

__all__ = ["BaseModule", "ClassifierModule", "DistillationModule"]
