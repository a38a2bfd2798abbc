"""Specialists (Hinton et al. 2015, section 5): their data, clusters, weights and teachers."""

from kd_lightning.specialists.data import SpecialistDataModule
from kd_lightning.specialists.source import SpecialistSource
from kd_lightning.specialists.teacher import SpecialistTeacher, SubsetTeacher

__all__ = [
    "SpecialistDataModule",
    "SpecialistSource",
    "SpecialistTeacher",
    "SubsetTeacher",
]
