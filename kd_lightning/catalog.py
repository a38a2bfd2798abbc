"""`kd list`: what there is, read from the source without importing it, so that it answers at once."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped_root

_PACKAGE = Path(__file__).parent
_SKIPPED = ("__init__", "base")


def _classes(folder: str) -> Iterator[tuple[Path, ast.ClassDef]]:
    """The first public class of each file that has one: the one the file is about."""
    for path in sorted((_PACKAGE / folder).rglob("*.py"), key=lambda path: path.name):
        if path.stem not in _SKIPPED:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from (
                (path, n)
                for n in tree.body
                if isinstance(n, ast.ClassDef) and not n.name.startswith("_")
            )


def _summary(node: ast.ClassDef) -> str:
    return (
        (ast.get_docstring(node) or "").strip().splitlines()[0] if ast.get_docstring(node) else ""
    )


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes that are plain values."""
    values: dict[str, Any] = {}
    for item in node.body:
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and item.value is not None
        ):
            try:
                values[item.target.id] = ast.literal_eval(item.value)
            except ValueError:
                continue
    return values


def _derives(node: ast.ClassDef, suffix: str) -> bool:
    return any(
        isinstance(base, ast.Name | ast.Attribute) and ast.unparse(base).endswith(suffix)
        for base in node.bases
    )


def _variants(method: str) -> list[str]:
    """Further YAML files of a method: `METHOD_VARIANT.yaml`."""
    return sorted(
        path.stem for path in (shipped_root() / "configs" / "methods").glob(f"{method}_*.yaml")
    )


def methods() -> list[dict[str, Any]]:
    found = []
    for path, node in _classes("losses"):
        if _derives(node, "DistillLoss"):
            about = {
                name: _literals(node).get(name) for name in ("paper", "year", "family", "needs")
            }
            about["needs"] = list(about["needs"] or ("teacher logits",))
            where = {"class_path": f"kd_lightning.losses.{node.name}", **about}
            names = (path.stem, *_variants(path.stem))
            found += [
                {"name": name, **where, "config": f"configs/methods/{name}.yaml"} for name in names
            ]
    return found


def models() -> list[dict[str, Any]]:
    return [
        {
            "name": node.name.lower(),
            "class_path": f"kd_lightning.models.{node.name}",
            "about": _summary(node),
        }
        for _, node in _classes("models")
        if _derives(node, "Module")
    ]


def data() -> list[dict[str, Any]]:
    """Every datamodule that a shipped config names, with the first of those configs."""
    import yaml

    nodes = {}
    for folder in ("data", "specialists"):
        for _, node in _classes(folder):
            nodes[node.name] = node
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((shipped_root() / "configs" / "data").glob("*.yaml")):
        class_path = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["class_path"]
        class_name = class_path.rpartition(".")[2]
        name = class_name.removesuffix("DataModule").lower()
        if class_name not in found or path.stem.replace("_", "") == name:
            found[class_name] = {
                "name": name,
                "class_path": class_path,
                "about": _summary(nodes[class_name]),
                "config": f"configs/data/{path.name}",
            }
    return list(found.values())


def experiments() -> list[dict[str, Any]]:
    import yaml

    root = shipped_root() / "experiments"
    found = []
    for path in sorted(root.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "runs" in content:
            name = path.relative_to(root).with_suffix("").as_posix()
            found.append(
                {"name": name, "claim": content.get("claim", ""), "time": content.get("time", "")}
            )
    return found


KINDS = {"methods": methods, "models": models, "data": data, "experiments": experiments}


def main(argv: list[str]) -> None:
    """`kd list KIND [--json]`."""
    words = [word for word in argv if not word.startswith("-")]
    options = [word for word in argv if word.startswith("-")]
    if "-h" in options or "--help" in options or not argv:
        print(f"usage: kd list {'|'.join(KINDS)} [--json]")
        return
    if unknown := [o for o in options if o != "--json"]:
        raise UserError(f"kd list: there is no option {unknown[0]}; there is --json")
    if len(words) != 1 or words[0] not in KINDS:
        raise UserError(
            f"kd list: there is no kind {' '.join(words)!r}; name one of {', '.join(KINDS)}"
        )
    rows = KINDS[words[0]]()
    print(json.dumps(rows, indent=2) if options else _table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [
        {k: ", ".join(v) if isinstance(v, list) else str(v or "") for k, v in row.items()}
        for row in rows
    ]
    names = list(rows[0]) if rows else []
    width = {name: max(len(name), *(len(row[name]) for row in cells)) for name in names}
    lines = [names, *([row[name] for name in names] for row in cells)]
    return "\n".join(
        "  ".join(f"{v:<{width[n]}}" for n, v in zip(names, line, strict=True)).rstrip()
        for line in lines
    )
