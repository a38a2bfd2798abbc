"""Teachers: frozen sources of outputs to learn from."""

from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.cache.fill import cache_teacher
from kd_lightning.teachers.cache.teacher import CachedTeacher
from kd_lightning.teachers.ema import EMATeacher
from kd_lightning.teachers.ensemble import EnsembleTeacher
from kd_lightning.teachers.model import ModelTeacher

__all__ = [
    "CachedTeacher",
    "EMATeacher",
    "EnsembleTeacher",
    "ModelTeacher",
    "Teacher",
    "cache_teacher",
]
