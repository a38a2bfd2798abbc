"""Small maps whose losses are known to several digits, from the definitions of the feature losses."""

from __future__ import annotations

from typing import Any

STUDENT: list[Any] = [[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [1.0, 0.0]]]]
TEACHER: list[Any] = [[[[1.0, 1.0], [0.0, 0.0]], [[2.0, 0.0], [1.0, 1.0]]]]
"""One sample of two channels and 2x2 positions."""

NEXT_STUDENT: list[Any] = [[[[1.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]]
NEXT_TEACHER: list[Any] = [[[[0.0, 1.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]]
"""The same sample, one stage later."""

STUDENT_ROWS: list[Any] = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
TEACHER_ROWS: list[Any] = [[1.0, 2.0], [2.0, 0.0], [0.0, 1.0]]
"""Three samples of two values."""
