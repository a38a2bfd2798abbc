"""The source files that a class depends on, found by following import statements.

Nothing is imported to follow an import: the files are parsed. Only this package and the user's own
modules are followed; the standard library and installed packages are not.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def read_source(path: Path) -> str:
    """Return the text of a source file."""
    return path.read_text(encoding="utf-8")


@cache
def parse_source(path: Path) -> ast.Module:
    """Parse a source file and drop its docstrings and other constants that stand alone."""
    tree = ast.parse(read_source(path))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        # The body of a lambda or of a conditional expression is a single node.
        if isinstance(body, list):
            others = [statement for statement in body if not _is_constant(statement)]
            body[:] = others
    return tree


def _is_constant(statement: ast.stmt) -> bool:
    """Whether a statement is a constant that stands alone, such as a docstring."""
    if not isinstance(statement, ast.Expr):
        return False
    return isinstance(statement.value, ast.Constant)


@cache
def code_version(path: Path) -> str:
    """Hash what a source file does: comments, docstrings and layout do not count."""
    dump = ast.dump(parse_source(path))
    return hashlib.sha256(dump.encode()).hexdigest()[:16]


def clear_caches() -> None:
    """Forget all parsed files, for example after a file changed on disk."""
    for cached in (parse_source, code_version, imported_files):
        cached.cache_clear()


def reached_files(start: Iterable[Path], ignored: Iterable[Path] = ()) -> set[Path]:
    """Return the given files and all files that they import, directly or indirectly.

    Args:
        start: source files of this package or of the user.
        ignored: files that are neither returned nor followed.
    """
    visited = set(ignored)
    reached = set()
    pending = list(start)
    while pending:
        path = pending.pop()
        if path not in visited:
            visited.add(path)
            reached.add(path)
            pending.extend(imported_files(path))
    return reached


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """Return the files that define what a source file imports, anywhere in it."""
    files: set[Path] = set()
    for node in ast.walk(parse_source(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                files.update(_source_files(find_module(alias.name)))
        elif isinstance(node, ast.ImportFrom):
            module = imported_module(node, path)
            for alias in node.names:
                files.update(defining_files(module, alias.name))
    return frozenset(files)


def imported_module(node: ast.ImportFrom, path: Path) -> Path | None:
    """Return the location of `module` for `from module import ...` in a file; see `find_module`."""
    if node.level == 0:
        return find_module(node.module or "")
    # One dot is the file's own folder, each further dot is one folder up.
    folder = path.parents[node.level - 1]
    if not node.module:
        return folder
    return folder.joinpath(*node.module.split("."))


def defining_files(module: Path | None, name: str) -> set[Path]:
    """Return the file that defines `name` for `from module import name`.

    A package's `__init__.py` often re-exports names of its modules. The name is traced to its
    module, because the other modules of the package do not matter to the importing file.

    Args:
        module: the module's location; None if its package is installed.
        name: an attribute or a submodule; `*` for all attributes.
    """
    if module is None:
        return set()
    package = module / "__init__.py"
    if not package.is_file() or name == "*":
        return _source_files(module) | _source_files(module / name)

    for node in parse_source(package).body:
        if isinstance(node, ast.ImportFrom):
            origin = imported_module(node, package)

            original = _original_name(node, name)
            # `from . import name` names a submodule, which is looked up below.
            if original is not None and origin != module:
                return defining_files(origin, original)
    submodule = _source_files(module / name)
    if submodule:
        return submodule
    if name in _assigned_names(package):
        return {package}
    # The name may come from `from .a import *` or a module's `__getattr__`: import and look.
    loaded = _file_of_loaded(_dotted_name(module), name)
    # If nobody can say where the name comes from, all imports of the package count.
    return {package if loaded is None else loaded}


def _original_name(node: ast.ImportFrom, name: str) -> str | None:
    """What a name is called where it is imported from; None if the statement does not import it."""
    for alias in node.names:
        # `from .a import x as name` renames x.
        if name == (alias.asname or alias.name):
            return alias.name
    return None


def _source_files(module: Path | None) -> set[Path]:
    """Return the source file of a module, given its location; empty if it has none."""
    if module is None:
        return set()
    package = module / "__init__.py"
    single = module.with_name(f"{module.name}.py")
    files = (package, single)
    return {path for path in files if path.is_file()}


def _dotted_name(module: Path) -> str:
    """The name under which a package, given its location, is imported."""
    root = _package_root(module / "__init__.py")
    return ".".join(module.relative_to(root).parts)


def _assigned_names(path: Path) -> Iterator[str]:
    """Yield the names that a file itself defines at module level."""
    for node in parse_source(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            # `a = b = 1` has two targets, `a: int = 1` has one.
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id


def find_module(name: str) -> Path | None:
    """Return a module's location: the folder of a package, or a source file without its suffix.

    Returns None for the standard library and for installed packages.
    """
    parts = name.split(".")
    is_own = parts[0] == PACKAGE.name
    folders = [PACKAGE.parent] if is_own else user_folders()
    modules = [folder.joinpath(*parts) for folder in folders]
    for module in modules:
        if _source_files(module):
            return module
    # A folder without `__init__.py` is a package as well, if there is no regular one.
    for module in modules:
        if module.is_dir():
            return module
    return None


def user_folders() -> list[Path]:
    """Return the folders on Python's search path that hold the user's own modules."""
    folders = []
    for entry in sys.path:
        folder = _resolved(entry)
        if not _is_installed(folder):
            folders.append(folder)
    return folders


@cache
def _resolved(folder: str) -> Path:
    """The absolute path of an entry of `sys.path`; cached, because the disk is slow."""
    return Path(folder).resolve()


@cache
def _is_installed(path: Path) -> bool:
    """Whether a path belongs to the standard library or to an installed package."""
    if path.is_relative_to(PACKAGE):
        return False
    standard_library = Path(sysconfig.get_path("stdlib")).resolve()
    # Python may keep its standard library in a zip file.
    if path.is_relative_to(standard_library) or path.suffix == ".zip":
        return True
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def class_file(class_path: str) -> Path | None:
    """Return the source file of a class or function; None if it is of an installed package."""
    module_name, _, name = class_path.rpartition(".")
    return _file_of_loaded(module_name, name)


def _file_of_loaded(module_name: str, name: str) -> Path | None:
    """Import a module and return the source file that defines one of its names."""
    module = import_module(module_name)
    # A class or function records where it is defined, which may differ from where it is imported.
    value = getattr(module, name, None)
    defined_in = getattr(value, "__module__", module_name)
    # Built-in modules have no file.
    file = getattr(sys.modules.get(defined_in), "__file__", None)
    path = Path(file or "").resolve()
    if path.suffix != ".py" or _is_installed(path):
        return None
    return path


def label(path: Path) -> str:
    """Name a source file in a run's key, independently of where its package is stored."""
    if path.is_relative_to(PACKAGE):
        return f"code.{path.relative_to(PACKAGE).as_posix()}"
    return f"user code.{path.relative_to(_package_root(path)).as_posix()}"


def _package_root(path: Path) -> Path:
    """Return the folder that holds the outermost package of a source file."""
    folder = path.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder
