"""Which tests must notice a change of which file."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

GOLDEN = "tests/losses/test_golden.py::test_the_first_steps_are_as_they_were"

SHARED: dict[str, list[str]] = {
    "_adapters": ["simkd", "fitnets", "at", "ofd", "reviewkd", "crd"],
    "_gather": ["sp", "rkd", "cc", "uskd"],
    "_labels": ["dkd", "nkd", "tfkd", "wsld", "rld", "uskd", "wkdl"],
    "_members": ["multiteacher", "camkd"],
    "_negatives": ["crd"],
    "_tokens": ["tinybert", "pkd", "distilbert"],
    "base": ["base", "kd", "ce", "ce_mixed", "ce_weights", "targetmse", "dkd", "rows"],
}
"""Files that several losses share, and the names of the tests that cover them."""

CACHE = "tests/teachers/cache"

TEACHERS: dict[str, list[str]] = {
    "base": ["test_base", "test_model"],
    "ema": ["test_ema"],
    "ensemble": ["test_ensemble"],
    "input_adapter": ["test_preprocessing"],
    "model": ["test_model", "test_model_refusals"],
    "preprocessing": ["test_preprocessing"],
    "codec_settings": ["cache/test_packing", "cache/test_teacher"],
    "codec": ["cache/test_packing", "cache/test_teacher", "cache/test_integrity"],
    "files": ["cache/test_store", "cache/test_interruption"],
    "fill": ["cache/test_limits", "cache/test_teacher", "cache/test_integrity"],
    "manifest": ["cache/test_store", "cache/test_integrity"],
    "opening": ["cache/test_teacher", "cache/test_integrity"],
    "packing": ["cache/test_packing"],
    "schema": ["cache/test_integrity"],
    "table": ["cache/test_store", "cache/test_integrity"],
    "teacher": ["cache/test_teacher", "cache/test_integrity"],
    "writer": ["cache/test_store", "cache/test_interruption"],
}
"""Files of the teachers and their tests, below tests/teachers, the fastest that fit first."""


def tests_for(root: Path, path: str, golden: bool) -> list[str]:
    """The arguments of pytest for a file of the package, the most specific tests first.

    Args:
        root: the repository.
        path: the file, relative to the root.
        golden: whether the recorded first steps of training count as tests of a loss.
    """
    stem = Path(path).stem
    if "generator" in Path(path).parts:
        return ["tests/losses/test_generator.py"]
    if "teachers" in Path(path).parts:
        return [f"tests/teachers/{name}.py" for name in TEACHERS[stem]]
    if stem in SHARED:
        shared = [f"tests/losses/test_{name}.py" for name in SHARED[stem]]
        # What joins the batches of several processes is tested with two of them.
        if stem == "_gather":
            shared.append("tests/devices/test_relational_losses.py")
        return shared
    # Such as test_ce.py, test_ce_mixed.py and test_ce_weights.py.
    folder = root / "tests" / "losses"
    own = sorted({*folder.glob(f"test_{stem}.py"), *folder.glob(f"test_{stem}_*.py")})
    tests = [test.relative_to(root).as_posix() for test in own]
    # Tests of what all losses declare and default to, and of what many treat alike.
    tests += ["tests/losses/test_defaults.py", "tests/losses/test_base.py"]
    for name in ("rows", "impossible_classes"):
        if _names_class(folder / f"test_{name}.py", _class_name(root / path)):
            tests.append(f"tests/losses/test_{name}.py")
    if not golden:
        return tests
    curves = json.loads((folder / "golden.json").read_text())
    for method in curves:
        if method == stem or method.startswith(f"{stem}_"):
            tests.append(f"{GOLDEN}[methods/{method}.yaml]")
    return tests


def _class_name(path: Path) -> str:
    """The loss of a file: the last class that it defines."""
    tree = ast.parse(path.read_bytes())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return classes[-1]


def _names_class(test: Path, name: str) -> bool:
    return re.search(rf"\b{name}\b", test.read_text()) is not None
