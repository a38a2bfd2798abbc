"""Finds the places of a Python file where a small change should make a test fail.

A mutant replaces one span of the source: an operator, a comparison, a constant, a dimension, a
`detach`, a sign, or the order of two arguments. Texts, annotations, docstrings, assertions and the
messages of errors are never changed.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

OPERATORS: dict[type[ast.operator], tuple[str, type[ast.operator]]] = {
    ast.Add: ("plus/minus", ast.Sub),
    ast.Sub: ("plus/minus", ast.Add),
    ast.Mult: ("times/divide", ast.Div),
    ast.Div: ("times/divide", ast.Mult),
    ast.FloorDiv: ("times/divide", ast.Mult),
    ast.Pow: ("times/divide", ast.Mult),
    ast.BitAnd: ("logic", ast.BitOr),
    ast.BitOr: ("logic", ast.BitAnd),
}
"""Each arithmetic operator, the kind of its mutant, and what replaces it."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
"""Each comparison and what replaces it."""

REDUCTIONS = {
    *("sum", "mean", "var", "std", "amax", "amin", "argmax", "argmin", "argsort"),
    *("softmax", "log_softmax", "logsumexp", "cumsum", "cumprod", "gather", "scatter"),
    *("index_select", "squeeze", "unsqueeze", "flatten", "size"),
}
"""Tensor methods whose first argument is a dimension."""

DETACHING = ("detach", "detached")

NOT_SWAPPED = {
    *("isinstance", "issubclass", "cast", "super", "getattr", "setattr", "range"),
    *("max", "min", "where"),
}
"""Functions whose first two arguments are of different types, or whose order does not matter."""

OTHER_TYPES = {"self", "cls", "batch", "cost", "name", "owner", "convention"}
"""Names of arguments that are no tensors: swapped with one, any call would fail at once."""

DECLARATIONS = ("year", "minimum_at_teacher")
"""Class attributes that document a loss or switch its tests on; no code of the package reads them."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: the file, relative to the root of the repository.
        kind: what is changed, such as "comparison".
        line: line of the change, from 1.
        start: first byte of the changed span.
        end: byte after the span.
        before: the text of the span.
        after: the text that replaces it.
        source: beginning of the SHA-256 of the file. A result of another version does not count.
    """

    path: str
    kind: str
    line: int
    start: int
    end: int
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """Identifies the mutant among all of all versions."""
        return f"{self.source}:{self.path}:{self.start}-{self.end}:{self.after}"

    def applied(self, content: bytes) -> bytes:
        """The file's content with the change."""
        return content[: self.start] + self.after.encode() + content[self.end :]

    def as_dict(self) -> dict[str, str | int]:
        """The fields, for a line of JSON."""
        return asdict(self)


class _Finder(ast.NodeVisitor):
    """Collects the mutants of one file."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self.content = content
        self.source = hashlib.sha256(content).hexdigest()[:12]
        self.found: list[Mutant] = []
        # Byte at which each line begins; the syntax tree counts columns in bytes too.
        self.line_starts = [0]
        for line in content.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """First byte of a node, and the byte after it."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.line_starts[node.lineno - 1] + node.col_offset
        end = self.line_starts[node.end_lineno - 1] + node.end_col_offset
        return start, end

    def text(self, node: ast.expr | ast.stmt) -> str:
        """The source of a node."""
        start, end = self.span(node)
        return self.content[start:end].decode()

    def add(self, kind: str, node: ast.expr | ast.stmt, after: str) -> None:
        """Note a mutant that replaces a node."""
        start, end = self.span(node)
        before = self.text(node)
        # The parentheses keep the order of evaluation, whatever is around the node.
        if kind not in ("constant", "dimension", "raise"):
            after = f"({after})"
        self.found.append(
            Mutant(self.path, kind, node.lineno, start, end, before, after, self.source)
        )

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Swap an arithmetic operator."""
        if type(node.op) in OPERATORS:
            kind, replacement = OPERATORS[type(node.op)]
            changed = copy.deepcopy(node)
            changed.op = replacement()
            self.add(kind, node, ast.unparse(changed))
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Visit the value alone: the operator is rarely arithmetic on tensors."""
        self.visit(node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Swap `and` and `or`."""
        changed = copy.deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.add("logic", node, ast.unparse(changed))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Flip each operator of a comparison."""
        for place, operator in enumerate(node.ops):
            changed = copy.deepcopy(node)
            changed.ops[place] = COMPARISONS[type(operator)]()
            self.add("comparison", node, ast.unparse(changed))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Remove a sign or a negation."""
        kind = "sign" if isinstance(node.op, ast.USub | ast.UAdd) else "negation"
        self.add(kind, node, self.text(node.operand))
        # The constant of `-1` is not changed a second time.
        if not isinstance(node.operand, ast.Constant):
            self.visit(node.operand)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Change a number or a truth value; texts stay."""
        value = node.value
        if isinstance(value, bool):
            self.add("constant", node, str(not value))
        elif isinstance(value, int):
            self.add("constant", node, str(value + 1))
        elif isinstance(value, float):
            self.add("constant", node, repr(2 * value) if value else "1.0")

    def visit_Call(self, node: ast.Call) -> None:
        """Remove a `detach`, change a dimension, swap the first two arguments."""
        function = node.func
        name = ast.unparse(function).rpartition(".")[2]
        if isinstance(function, ast.Attribute) and name in DETACHING:
            self.add("detach", node, self.text(function.value))
        self._swap_arguments(node, name)
        dimensions: list[ast.expr] = []
        is_reduction = isinstance(function, ast.Attribute) and name in REDUCTIONS
        # The dimension of `x.sum(1)`, but not the tensor of `torch.sum(x)`.
        if is_reduction and node.args and _integer(node.args[0]) is not None:
            dimensions.append(node.args[0])
        for keyword in node.keywords:
            if keyword.arg in ("dim", "axis"):
                dimensions.append(keyword.value)
        for dimension in dimensions:
            value = _integer(dimension)
            if value is not None:
                self.add("dimension", dimension, "1" if value == 0 else "0")
        self.visit(function)
        for argument in node.args:
            if argument not in dimensions:
                self.visit(argument)
        for keyword in node.keywords:
            if keyword.value not in dimensions and keyword.arg != "stacklevel":
                self.visit(keyword.value)

    def _swap_arguments(self, node: ast.Call, name: str) -> None:
        """Note the mutant that swaps the first two arguments of a call."""
        if len(node.args) < 2 or name in NOT_SWAPPED:
            return
        first, second = node.args[:2]
        for argument in (first, second):
            # A literal beside a variable is of another type or has a place of its own.
            if isinstance(argument, ast.Constant | ast.Starred | ast.JoinedStr):
                return
            if self.text(argument).rpartition(".")[2] in OTHER_TYPES:
                return
        if self.text(first) == self.text(second):
            return
        changed = copy.deepcopy(node)
        changed.args[:2] = [changed.args[1], changed.args[0]]
        self.add("arguments", node, ast.unparse(changed))

    def visit_If(self, node: ast.If) -> None:
        """Skip what only a type checker runs."""
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Remove a statement that refuses something; its message stays."""
        self.add("raise", node, "pass")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Skip the annotation, and what only documents a loss."""
        name = node.target.id if isinstance(node.target, ast.Name) else ""
        if node.value is not None and name not in DECLARATIONS:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Skip the annotations and the decorators."""
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Skip the subscripts of types; those of values are visited."""
        is_type = isinstance(node.value, ast.Name) and node.value.id[0].isupper()
        if not is_type:
            self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """Skip: assertions inform the type checker."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Skip: texts are not tested to the letter."""


def _integer(node: ast.expr) -> int | None:
    """The value of a whole number, possibly negative; None for anything else."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return value if is_integer else None


def mutants_of(path: str, content: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of their places.

    Args:
        path: the file, relative to the root of the repository.
        content: the file's content.
    """
    finder = _Finder(path, content)
    finder.visit(ast.parse(content))
    return sorted(finder.found, key=lambda mutant: (mutant.start, mutant.after))


def mixed(mutants: list[Mutant], rng: random.Random) -> list[Mutant]:
    """Mutants in a random order that takes one of each kind in turn.

    Without this, most would be changed constants.
    """
    kinds: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        kinds.setdefault(mutant.kind, []).append(mutant)
    groups = list(kinds.values())
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    order = []
    while any(groups):
        for group in groups:
            if group:
                order.append(group.pop())
    return order


def in_turn(root: Path, paths: list[str], seed: int) -> Iterator[Mutant]:
    """Random mutants, one of each file in turn, so that every beginning covers the files evenly.

    Args:
        root: the repository.
        paths: the files, relative to the root.
        seed: decides the order within each file.
    """
    remaining = []
    for path in paths:
        mutants = mutants_of(path, (root / path).read_bytes())
        # The order within a file does not depend on the other files.
        rng = random.Random(f"{seed} {path}")
        remaining.append(mixed(mutants, rng))
    while any(remaining):
        for mutants in remaining:
            if mutants:
                yield mutants.pop(0)
