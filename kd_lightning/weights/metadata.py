"""Our own entry in a checkpoint, and the form that it and Lightning's entries must have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import Any

from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.weights import schema

KEY = "kd_lightning"
"""The key of our own entry in a Lightning checkpoint.

It holds the network's class and arguments, the data's spec and the teacher's source.
"""

_VERSION = re.compile(r"\d+(\.\d+)*(\W|[a-z]|$)")
_VOCABULARY = schema.record(
    {
        "size": schema.count,
        "pad": schema.INTEGER,
        "max_length": schema.INTEGER,
        "sha256": schema.TEXT,
    }
)
_INPUT = schema.record({"shape": schema.list_of(schema.count), "value": schema.INTEGER})
_COUNTS = schema.mapping_of(schema.count)
_SPEC = schema.record(
    {},
    {
        "data": schema.TEXT,
        "task": schema.TEXT,
        "input_shape": schema.list_of(schema.count),
        "num_classes": schema.count,
        "classes": schema.list_of(schema.TEXT),
        "samples": _COUNTS,
        "source_samples": schema.count,
        "target_shape": schema.list_of(schema.count),
        "mean": schema.list_of(schema.number),
        "std": schema.list_of(schema.number),
        "inputs": schema.mapping_of(_INPUT),
        "teacher_inputs": schema.mapping_of(_INPUT),
        "vocabulary": _VOCABULARY,
        "teacher_vocabulary": _VOCABULARY,
        "cut": _COUNTS,
        "teacher_cut": _COUNTS,
    },
)
_NETWORK = schema.record(
    {"class_path": schema.TEXT},
    {
        "init_args": schema.mapping_of(schema.anything),
        "dict_kwargs": schema.mapping_of(schema.anything),
    },
)
_OWN_ENTRY = schema.record(
    {},
    {
        "role": schema.TEXT,
        "network": _NETWORK,
        "without_files": schema.mapping_of(schema.anything),
        "spec": _SPEC,
        "data": schema.MAPPING,
        "teacher": schema.list_of(schema.MAPPING),
    },
)
_TENSORS = schema.mapping_of(schema.is_a(Tensor, "a tensor"))
_OPTIMIZER = schema.record(
    {
        "state": schema.MAPPING,
        "param_groups": schema.list_of(
            schema.record({"params": schema.list_of(schema.INTEGER)})
        ),
    }
)
_SCHEDULER = schema.record({"last_epoch": schema.INTEGER})


def _version(value: object, name: str) -> str | None:
    """The value is a version that Lightning can compare with its own."""
    problem = schema.TEXT(value, name)
    if problem is None and _VERSION.match(str(value)) is None:
        return f"{name} is {value!r}"
    return problem


_EVALUATED = schema.record(
    {
        "epoch": schema.count,
        "global_step": schema.count,
        "pytorch-lightning_version": _version,
        "state_dict": _TENSORS,
    },
    {
        "callbacks": schema.mapping_of(schema.anything),
        "loops": schema.mapping_of(schema.MAPPING),
    },
)
_RESUMED = schema.record(
    {
        "optimizer_states": schema.list_of(_OPTIMIZER),
        "lr_schedulers": schema.list_of(_SCHEDULER),
        "loops": schema.mapping_of(schema.MAPPING),
    }
)


def plain(value: Any) -> Any:
    """Convert nested values to builtins, so that a checkpoint loads without running code."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        # As a config names it; enums of texts are texts, which YAML cannot write.
        return value.name
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, FunctionType | type):
        # As a config names it; the text of a function object would hold its address in memory.
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def check_metadata(content: Mapping[str, Any], what: str, path: Path) -> None:
    """Check the form of our own entry in a file, if it has one.

    Args:
        content: of the file.
        what: name of the file's purpose, for messages.
        path: of the file, for messages.

    Raises:
        UserError: one line that names the first value of another form.
    """
    # Files of other programs have no entry of ours.
    if KEY not in content:
        return
    described = content[KEY]
    problem = _OWN_ENTRY(described, KEY)
    # An entry with data was written after the data had been read, so its spec was
    # known.
    if problem is None and described.get("data") and not described.get("spec"):
        problem = f"{KEY}.spec is missing"
    if problem is None and "state_dict" in content:
        problem = _TENSORS(content["state_dict"], "state_dict")
    if problem is not None:
        raise UserError(
            f"{what}: {path} is damaged ({problem}); give another checkpoint"
        )


def check_lightning_entries(
    content: Mapping[str, Any],
    what: str,
    resumes: bool,
) -> None:
    """Check the entries that Lightning reads before it reads them.

    Args:
        content: of a checkpoint of ours.
        what: name of the file's purpose, for messages.
        resumes: whether training resumes, which needs the states of optimizers.

    Raises:
        UserError: one line that names the first entry that is missing or of another form.
    """
    # An evaluation reads neither optimizers nor schedulers.
    checks = [_EVALUATED, _RESUMED] if resumes else [_EVALUATED]
    for check in checks:
        problem = check(content, "checkpoint")
        if problem is not None:
            # The user knows the entry by its own name, such as `loops`.
            problem = problem.replace("checkpoint.", "", 1)
            raise UserError(
                f"{what} is damaged ({problem}); give another checkpoint of the run, or start a "
                "new run from its weights with --model.init_from"
            )
