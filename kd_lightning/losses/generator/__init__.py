"""Losses of a generator that makes images for data-free distillation, one file per method."""
