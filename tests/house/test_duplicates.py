"""What two papers need is written once: no piece of code stands in two projects, also not in other words."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from tests.house.tree import project_of, relative, sources

SMALLEST = 45  # nodes of the syntax tree: about four lines that do something
FUNCTIONS, RUNS = 0, 0
"""Ceilings on pieces that stand in two projects (or a project and common): whole functions, runs of statements."""


def words_of(node: object, local: set[str], seen: dict[str, str], out: list[str]) -> None:
    """A piece as words: local names by their order of first appearance, constants by their type, no annotations.

    What is called and which attributes are read stays: two functions that call other things are not the same.
    """
    if isinstance(node, list):
        for part in node:
            words_of(part, local, seen, out)
        out.append("]")
    elif isinstance(node, (ast.Name, ast.arg)):
        name = node.id if isinstance(node, ast.Name) else node.arg
        out.append(seen.setdefault(name, f"v{len(seen)}") if name in local else name)
    elif isinstance(node, ast.Constant):
        out.append(type(node.value).__name__)
    elif isinstance(node, ast.JoinedStr):
        out.append("str")
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        words_of(ast.Assign([node.target], node.value), local, seen, out)
    elif isinstance(node, ast.FunctionDef):
        out.append("FunctionDef")
        words_of([node.args, without_docstring(node.body)], local, seen, out)
    elif isinstance(node, ast.AST):
        out.append(type(node).__name__)
        for field in node._fields:
            if field not in ("ctx", "annotation", "returns", "type_comment"):
                words_of(getattr(node, field, None), local, seen, out)
    else:
        out.append(str(node))


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if documented else body


def assigned(nodes: list[ast.stmt]) -> set[str]:
    """Names that a piece binds: arguments, targets, loop variables."""
    names = set()
    for top in nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    return names


def fingerprint(body: list[ast.stmt], local: set[str]) -> str:
    """Hash of a piece with its names and constants taken out."""
    out: list[str] = []
    words_of(body, local, {}, out)
    return hashlib.sha256(" ".join(out).encode()).hexdigest()


def size(body: list[ast.stmt]) -> int:
    return sum(1 for top in body for _ in ast.walk(top))


def whole_functions(path: Path) -> list[tuple[str, str]]:
    """(fingerprint, place) of the larger functions of a file."""
    found = []
    for node in ast.walk(sources()[path]):
        if isinstance(node, ast.FunctionDef):
            body = without_docstring(node.body)
            if size(body) >= SMALLEST:
                local = assigned([node])
                found.append((fingerprint(body, local), f"{relative(path)}:{node.lineno} {node.name}"))
    return found


def runs(path: Path) -> list[tuple[str, str]]:
    """(fingerprint, place) of runs of at least three simple statements inside functions."""
    found = []
    for function in ast.walk(sources()[path]):
        if not isinstance(function, ast.FunctionDef):
            continue
        local = assigned([function])
        for node in ast.walk(function):
            body = getattr(node, "body", [])
            body = without_docstring(body) if isinstance(body, list) else []
            for start in range(len(body) - 2):
                piece = body[start : start + 3]
                if (
                    not any(isinstance(part, (ast.FunctionDef, ast.ClassDef)) for part in piece)
                    and size(piece) >= SMALLEST
                ):
                    found.append((fingerprint(piece, local), f"{relative(path)}:{piece[0].lineno}"))
    return found


def in_two_projects(pieces) -> list[list[str]]:
    """Places of the pieces that stand in two projects, or in a project and in common."""
    where: dict[str, dict[str, str]] = {}
    for path in sources():
        for mark, place in pieces(path):
            where.setdefault(mark, {}).setdefault(project_of(path), place)
    return [sorted(places.values()) for places in where.values() if len(places) > 1]


def test_no_function_stands_in_two_projects() -> None:
    found = in_two_projects(whole_functions)
    assert len(found) <= FUNCTIONS, f"{len(found)}, at most {FUNCTIONS}: {found}"


def test_no_run_of_statements_stands_in_two_projects() -> None:
    found = in_two_projects(runs)
    assert len(found) <= RUNS, f"{len(found)}, at most {RUNS}: {found}"


def test_the_measure_sees_through_names_and_constants() -> None:
    """Two functions that differ in names and numbers alone are one; other calls make another."""

    def body(text: str) -> tuple[list[ast.stmt], set[str]]:
        function = ast.parse(text).body[0]
        return without_docstring(function.body), assigned([function])

    first = body("def a(x):\n 'Doc.'\n y = f(x) + 1\n return y.mean()")
    second = body("def b(other):\n kept = f(other) + 2\n return kept.mean()")
    third = body("def c(x):\n y = g(x) + 1\n return y.mean()")
    assert fingerprint(*first) == fingerprint(*second) != fingerprint(*third)
