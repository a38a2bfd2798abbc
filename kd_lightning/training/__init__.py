"""LightningModules: one trains on labels, the other against a teacher."""

from kd_lightning.training.base import BaseModule
from kd_lightning.training.classifier import ClassifierModule
from kd_lightning.training.distillation import DistillationModule

__all__ = ["BaseModule", "ClassifierModule", "DistillationModule"]
