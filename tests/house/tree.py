"""The product's source files, parsed once, and what each of them imports."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "projects")


@functools.cache
def sources() -> dict[Path, ast.Module]:
    """Every Python file of the product, parsed."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files += sorted(ROOT.glob("strlab.py"))
    return {path: ast.parse(path.read_text("utf-8"), str(path)) for path in files if "__pycache__" not in path.parts}


def relative(path: Path) -> str:
    """Path below the repository."""
    return path.relative_to(ROOT).as_posix()


def project_of(path: Path) -> str:
    """`projects/<name>` of a file of a project, else the first folder or file name."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == "projects" else parts[0]


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods of a module, inner ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node: ast.AST) -> int:
    """Lines of a node."""
    return node.end_lineno - node.lineno + 1


def is_type_checking(node: ast.AST) -> bool:
    """True for `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def import_nodes(tree: ast.Module, inside: bool, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements of a module: those inside functions with `inside`, those under TYPE_CHECKING with `typing`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif (inside or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))) and (
            typing or not is_type_checking(node)
        ):
            waiting.extend(ast.iter_child_nodes(node))


def imported_names(tree: ast.Module, inside: bool = True, typing: bool = True) -> list[str]:
    """Dotted names that a module imports."""
    names = []
    for node in import_nodes(tree, inside, typing):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@functools.cache
def by_module() -> dict[str, Path]:
    """Dotted name -> file of every module and package."""
    named = {}
    for path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imported_files(path: Path, inside: bool = True, typing: bool = False) -> set[Path]:
    """Files of the product that a file imports."""
    known, found = by_module(), set()
    for name in imported_names(sources()[path], inside, typing):
        parts = name.split(".")
        for end in (len(parts), len(parts) - 1):
            target = known.get(".".join(parts[:end]))
            if target is not None:
                found.add(target)
                break
    return found - {path}


def closure(path: Path) -> set[Path]:
    """The files that importing this one loads, itself included; empty packages do not count."""
    waiting, seen = [path], set()
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += imported_files(file, inside=False)
    return {file for file in seen if file.read_text("utf-8").strip()}
