"""Training: plain-torch Learner and Objective, and the Lightning modules around them."""

from kd_lightning.training.classifier import ClassifierModule
from kd_lightning.training.data_free import DataFreeModule
from kd_lightning.training.deferred import DeferredNetwork
from kd_lightning.training.distillation import DistillationModule
from kd_lightning.training.learner import Learner
from kd_lightning.training.module import TrainingModule
from kd_lightning.training.mutual import MutualModule
from kd_lightning.training.objective import Objective, ObjectiveValue
from kd_lightning.training.on_policy import OnPolicyModule

__all__ = [
    "ClassifierModule",
    "DataFreeModule",
    "DeferredNetwork",
    "DistillationModule",
    "Learner",
    "MutualModule",
    "Objective",
    "ObjectiveValue",
    "OnPolicyModule",
    "TrainingModule",
]
