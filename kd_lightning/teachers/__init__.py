"""Teachers: frozen sources of outputs to learn from."""

from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.cached import CachedTeacher, cache_teacher
from kd_lightning.teachers.ensemble import EnsembleTeacher
from kd_lightning.teachers.model import ModelTeacher
from kd_lightning.teachers.specialists import SpecialistTeacher, SubsetTeacher

__all__ = ["CachedTeacher", "EnsembleTeacher", "ModelTeacher", "SpecialistTeacher", "SubsetTeacher", "Teacher", "cache_teacher"]
