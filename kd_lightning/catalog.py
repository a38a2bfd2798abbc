"""Lists the shipped methods, models, data sets, experiments and configs for `kd list`.

The lists are read from source files without importing them, so that the command answers at once.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped_root
from kd_lightning.yaml_files import read_yaml_file

Row = dict[str, Any]

_PACKAGE = Path(__file__).parent
_SKIPPED = ("__init__", "base")
_METHOD_ATTRIBUTES = ("paper", "year", "family", "needs")


def _classes(folder: str) -> Iterator[tuple[Path, ast.ClassDef]]:
    """The public classes of each file below a folder of the package, by file name."""
    # Sorted by name alone: a reader of the list does not know the folders.
    all_files = (_PACKAGE / folder).rglob("*.py")
    files = sorted(all_files, key=lambda path: path.name)
    for path in files:
        if path.stem in _SKIPPED:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield path, node


def _summary(node: ast.ClassDef) -> str:
    """The first line of a class's docstring."""
    docstring = (ast.get_docstring(node) or "").strip()
    return docstring.partition("\n")[0]


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """The annotated class attributes whose values are literals."""
    values: dict[str, Any] = {}
    for item in node.body:
        # An annotation alone, such as `labels: Tensor`, has no value.
        if not isinstance(item, ast.AnnAssign) or item.value is None:
            continue
        if not isinstance(item.target, ast.Name):
            continue
        # A computed value is no literal.
        with contextlib.suppress(ValueError):
            values[item.target.id] = ast.literal_eval(item.value)
    return values


def _derives(node: ast.ClassDef, suffix: str) -> bool:
    """Whether the name of a direct base class ends with `suffix`."""
    for base in node.bases:
        # A base may be written `Module` or `nn.Module`.
        if not isinstance(base, ast.Name | ast.Attribute):
            continue
        if ast.unparse(base).endswith(suffix):
            return True
    return False


def _variants(method: str) -> list[str]:
    """Names of a method's additional configs, `METHOD_VARIANT.yaml`."""
    folder = shipped_root() / "configs" / "methods"
    return sorted(path.stem for path in folder.glob(f"{method}_*.yaml"))


def methods() -> list[Row]:
    """One row per config of a distillation method: its loss class, paper and requirements."""
    rows = []
    for path, node in _classes("losses"):
        if not _derives(node, "DistillLoss"):
            continue
        literals = _literals(node)
        attributes: Row = {}
        for name in _METHOD_ATTRIBUTES:
            attributes[name] = literals.get(name)
        # A method that names no needs reads the teacher's logits.
        attributes["needs"] = list(attributes["needs"] or ("teacher logits",))
        for name in (path.stem, *_variants(path.stem)):
            row = {
                "name": name,
                "class_path": f"kd_lightning.losses.{node.name}",
                **attributes,
                "config": f"configs/methods/{name}.yaml",
            }
            rows.append(row)
    return rows


def models() -> list[Row]:
    """One row per network class."""
    rows = []
    for _, node in _classes("models"):
        is_network = _derives(node, "Module") or _derives(node, "LanguageModel")
        if is_network and not _derives(node, "ABC"):
            row = {
                "name": node.name.lower(),
                "class_path": f"kd_lightning.models.{node.name}",
                "about": _summary(node),
            }
            rows.append(row)
    return rows


def data() -> list[Row]:
    """One row per datamodule that a shipped config names, with one of its configs."""
    # The summaries come from the source files, so that no datamodule is imported.
    nodes = {}
    for folder in ("data", "specialists"):
        for _, node in _classes(folder):
            nodes[node.name] = node
    rows: dict[str, Row] = {}
    configs = shipped_root() / "configs" / "data"
    for path in sorted(configs.glob("*.yaml")):
        config = read_yaml_file(path, str(path))
        class_path = config["data"]["class_path"]
        class_name = class_path.rpartition(".")[2]
        name = class_name.removesuffix("DataModule").lower()
        # The config named after the datamodule takes precedence over the first one.
        is_namesake = path.stem.replace("_", "") == name
        if class_name not in rows or is_namesake:
            rows[class_name] = {
                "name": name,
                "class_path": class_path,
                "about": _summary(nodes[class_name]),
                "config": f"configs/data/{path.name}",
            }
    return list(rows.values())


def experiments() -> list[Row]:
    """One row per shipped experiment: its claim, and the time it takes."""
    root = shipped_root() / "experiments"
    rows = []
    for path in sorted(root.rglob("*.yaml")):
        content = read_yaml_file(path, str(path))
        # Other YAML files, such as configs, may be next to the experiments.
        if not isinstance(content, dict) or "runs" not in content:
            continue
        row = {
            "name": path.relative_to(root).with_suffix("").as_posix(),
            "claim": content.get("claim", ""),
            "time": content.get("time", ""),
        }
        rows.append(row)
    return rows


def configs() -> list[Row]:
    """One row per shipped config: its path for `-c`, and its first comment."""
    root = shipped_root() / "configs"
    rows = []
    for path in sorted(root.rglob("*.yaml")):
        comment = []
        for line in path.read_text(encoding="utf-8").splitlines():
            # The first comment may have several lines.
            if not line.startswith("#"):
                break
            comment.append(line.removeprefix("#").strip())
        name = path.relative_to(root.parent).as_posix()
        about = " ".join(comment)
        rows.append({"name": name, "about": about})
    return rows


KINDS: dict[str, Callable[[], list[Row]]] = {
    "methods": methods,
    "models": models,
    "data": data,
    "experiments": experiments,
    "configs": configs,
}

_OTHER_WORDS = {
    "losses": "methods",
    "networks": "models",
    "datasets": "data",
    "pairs": "configs",
    "teachers": "configs",
}
"""What users may call a kind."""

_MORE_HELP = {
    "methods": "kd fit --model.losses.help {class_name}",
    "models": "kd fit --model.network.help {class_path}",
    "data": "kd fit --data.help {class_path}",
    "experiments": "kd reproduce {name} --help",
    "configs": "kd fit -c {name} --print_config",
}
"""The command that shows more of an entry."""

_USAGE = f"""\
usage: kd list {"|".join(KINDS)} [NAME] [--json]

kd list KIND NAME describes one entry and names the command that shows its options, such as
  kd list methods kd
  kd fit --model.losses.help KD
"""


def main(argv: list[str]) -> None:
    """Run `kd list KIND [NAME] [--json]`.

    Args:
        argv: the arguments after `list`.

    Raises:
        UserError: if the kind, the name or an option is unknown.
    """
    words = []
    options = []
    for argument in argv:
        if argument.startswith("-"):
            options.append(argument)
        else:
            words.append(argument)
    if "-h" in options or "--help" in options or not argv:
        print(_USAGE, end="")
        return
    for option in options:
        if option != "--json":
            raise UserError(f"kd list: unknown option {option}; valid options: --json")
    word = words[0] if words else ""
    kind = _OTHER_WORDS.get(word, word)
    if kind not in KINDS or len(words) > 2:
        valid = ", ".join(KINDS)
        raise UserError(
            f"kd list: unknown kind {' '.join(words)!r}; valid kinds: {valid}"
        )
    # Nothing is imported to list it, so that the list appears at once.
    rows = KINDS[kind]()
    name = words[1] if len(words) == 2 else None
    if name is not None:
        rows = _named(rows, kind, name)
    # The only option is --json.
    if options:
        print(json.dumps(rows, indent=2))
    elif name is not None:
        print(_description(rows, kind))
    else:
        print(_table(rows))


def _class_name(row: Row) -> str:
    """The class of an entry without its module; empty for a config."""
    return str(row.get("class_path", "")).rpartition(".")[2]


def _named(rows: list[Row], kind: str, name: str) -> list[Row]:
    """The rows of an entry or of a class, whatever the case of the letters."""
    named = []
    names: dict[str, str] = {}
    for row in rows:
        for known in (row["name"], _class_name(row)):
            names[known.lower()] = known
        own_names = (row["name"].lower(), _class_name(row).lower())
        if name.lower() in own_names:
            named.append(row)
    if not named:
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"kd list {kind} names all"
        if close:
            hint = f"did you mean {names[close[0]]!r}?"
        raise UserError(f"kd list {kind}: there is no {name!r}; {hint}")
    return named


def _description(rows: list[Row], kind: str) -> str:
    """All fields of the rows, and the command that shows more."""
    lines = []
    for row in rows:
        for field, value in row.items():
            lines.append(f"{field}: {_cell(value)}")
        command = _MORE_HELP[kind].format(
            name=row["name"],
            class_name=_class_name(row),
            class_path=row.get("class_path"),
        )
        lines.append(f"more: {command}")
        lines.append("")
    return "\n".join(lines[:-1])


def _table(rows: list[Row]) -> str:
    """The rows as text in aligned columns, below a line of column names."""
    names = list(rows[0]) if rows else []
    lines = [names]
    for row in rows:
        cells = [_cell(row[name]) for name in names]
        lines.append(cells)
    # A column is as wide as its longest cell.
    widths = []
    for column in zip(*lines, strict=True):
        widths.append(max(map(len, column)))
    padded = []
    for line in lines:
        text = ""
        for cell, width in zip(line, widths, strict=True):
            text += cell.ljust(width) + "  "
        padded.append(text.rstrip())
    return "\n".join(padded)


def _cell(value: list[str] | str | int | None) -> str:
    """A value of a row as text; empty for None."""
    if isinstance(value, list):
        return ", ".join(value)
    return str(value or "")
