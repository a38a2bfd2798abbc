"""Defaults of losses are part of their interface: a changed one would silently change what a short config means."""

from __future__ import annotations

import inspect

import pytest

from kd_lightning import losses

DEFAULTS: dict[str, dict[str, object]] = {
    "AB": {"layers": ("preact1", "preact2", "preact3"), "margin": 1.0},
    "ABKD": {"alpha": 0.2, "beta": 0.7, "temperature": 1.0},
    "AT": {"layers": ("stage1", "stage2", "stage3"), "convention": "paper"},
    "CATKD": {"layer": "map", "head": "head", "grid": None},
    "CC": {
        "layer": "penultimate",
        "dimensions": 128,
        "gamma": 0.4,
        "order": 2,
        "convention": "paper",
        "freeze_teacher": False,
    },
    "CRD": {
        "layer": "penultimate",
        "dimensions": 128,
        "num_negatives": 16384,
        "temperature": None,
        "momentum": 0.5,
        "negatives": "class",
        "in_batch": False,
        "convention": "paper",
    },
    "CTKD": {"low": 1.0, "span": 20.0, "length": 10},
    "CWD": {"layer": "map", "temperature": 4.0},
    "CrossEntropy": {"label_smoothing": 0.0, "class_weights": None, "head": None},
    "DIST": {"beta": 1.0, "gamma": 1.0, "temperature": 4.0},
    "DKD": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    "DistilBERT": {"layer": "states2"},
    "FSP": {"layers": ("stem", "stage1", "stage2", "stage3"), "convention": "paper"},
    "FT": {"layer": "map", "stage": "translator", "rate": 0.5, "convention": "paper"},
    "FitNets": {
        "student_layer": "stage2",
        "teacher_layer": "stage2",
        "convention": "paper",
        "relu": True,
    },
    "AdaptiveKL": {"mass": 0.5, "temperature": 1.0},
    "GJSD": {"beta": 0.5, "temperature": 4.0},
    "SkewKL": {"alpha": 0.1, "reverse": False, "temperature": 1.0},
    "TAID": {
        "steps": 1000,
        "start_at": 0.4,
        "alpha": 5e-4,
        "beta": 0.99,
        "temperature": 1.0,
    },
    "HardDistillation": {"head": None},
    "ICKD": {"layer": "map", "convention": "code"},
    "Jeffreys": {"temperature": 4.0},
    "KD": {"temperature": 4.0},
    "LogitMSE": {"classes": "sum", "center": False},
    "LogitStandardization": {"temperature": 2.0},
    "MGD": {"layer": "map", "masked": "channels", "probability": 0.15},
    "MLKD": {
        "temperatures": (2.0, 3.0, 4.0, 5.0, 6.0),
        "between_samples": 1.0,
        "between_classes": 1.0,
    },
    "NKD": {"gamma": 1.5, "temperature": 1.0},
    "NST": {"layers": ("stage1", "stage2", "stage3")},
    "OFD": {
        "layers": ("preact1", "preact2", "preact3"),
        "norms": ("norm1", "norm2", "norm3"),
    },
    "PAD": {"layer": "penultimate", "adaptive": True},
    "PKD": {"layers": ("states1",)},
    "PKT": {"layer": "penultimate", "convention": "paper"},
    "RKD": {
        "distance_weight": 25.0,
        "angle_weight": 50.0,
        "layer": "penultimate",
        "convention": "paper",
    },
    "RLD": {
        "alpha": 1.0,
        "beta": 8.0,
        "temperature": 4.0,
        "confidence_temperature": 1.0,
    },
    "ReverseKL": {"temperature": 4.0},
    "ReviewKD": {
        "layers": ("stage1", "stage2", "stage3", "penultimate"),
        "teacher_layers": ("preact1", "preact2", "preact3", "penultimate"),
    },
    "SP": {"layer": "stage3"},
    "SRD": {"layer": "penultimate"},
    "SRRL": {"layer": "map", "head": "head", "logit_weight": 1.0},
    "SimKD": {"layer": "map", "head": "head", "reduction": 2},
    "TTM": {"gamma": 0.1, "weighted": False},
    "TfKD": {"convention": "paper", "temperature": 20.0, "correct": 0.99},
    "TinyBERT": {
        "states": ("states0", "states1", "states2"),
        "scores": ("scores1", "scores2"),
        "shared": False,
    },
    "TotalVariation": {"temperature": 1.0},
    "USKD": {"layer": "stage2", "alpha": 1.0, "beta": 0.1, "mu": 0.005},
    "VID": {
        "layers": ("stage1", "stage2", "stage3"),
        "convention": "paper",
        "variance": 5.0,
        "eps": 1e-05,
    },
    "VkD": {"layer": "penultimate"},
    "WKDL": {
        "similarities": None,
        "transport": 600.0,
        "temperature": 8.0,
        "kappa": 1.0,
        "iterations": 10,
    },
    "WSLD": {"temperature": 4.0},
}
"""The papers' values, or the benchmark's, as the docstrings explain them."""


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_stay(name: str) -> None:
    loss = getattr(losses, name)
    defaults = {}
    for parameter in inspect.signature(loss).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            defaults[parameter.name] = parameter.default
    assert defaults == DEFAULTS[name]


def test_defaults_of_the_schedule() -> None:
    signature = inspect.signature(losses.DistillLoss)
    defaults = {name: each.default for name, each in signature.parameters.items()}
    assert defaults == {"weight": 1.0, "start": 0, "end": None, "warmup": 0}
