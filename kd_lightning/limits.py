"""Limits that several parts of the package check before they plan anything."""

from __future__ import annotations

MAX_VIEWS = 10_000
"""The most views of a cache, or of data: more than any training has epochs."""
