"""Tasks: what is predicted, how it is measured, and what a test stores; one file per task."""

from kd_lightning.tasks.base import Task
from kd_lightning.tasks.classification import Classification
from kd_lightning.tasks.language import (
    LanguageModelling,
    MaskedLanguageModelling,
    SequenceToSequence,
)
from kd_lightning.tasks.multilabel import MultilabelClassification
from kd_lightning.tasks.regression import Regression
from kd_lightning.tasks.segmentation import Segmentation

__all__ = [
    "Classification",
    "LanguageModelling",
    "MaskedLanguageModelling",
    "MultilabelClassification",
    "Regression",
    "Segmentation",
    "SequenceToSequence",
    "Task",
]
