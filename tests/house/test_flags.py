"""Every flag has an effect, and a difference between papers is an argument, not a name."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house.tree import ROOT, relative, sources


def tabled_flag(node: ast.Call) -> list[tuple[str, int]]:
    """(dest, line) of a row of a flag table, `Flag("--name --other", …)`; none for rows with a `dead` field, which
    --help lists under "no effect" and which are announced when given."""
    first = node.args[0] if node.args else None
    dead = any(keyword.arg == "dead" for keyword in node.keywords)
    if dead or not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
        return []
    dest = next((k.value.value for k in node.keywords if k.arg == "dest" and isinstance(k.value, ast.Constant)), "")
    return [(dest or first.value.split()[0].removeprefix("--").replace("-", "_"), node.lineno)]


def flags_of(tree: ast.Module) -> list[tuple[str, int]]:
    """(dest, line) of every option that a module defines by `add_argument` with a literal name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Flag":
            found += tabled_flag(node)
            continue
        if not (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
        ):
            continue
        names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        action = keywords.get("action")
        if not names or (isinstance(action, ast.Constant) and action.value in ("help", "version")):
            continue
        dest = keywords.get("dest")
        long = [name for name in names if name.startswith("--")] or names
        name = dest.value if isinstance(dest, ast.Constant) else long[0].lstrip("-").replace("-", "_")
        found.append((name, node.lineno))
    return found


def read_names(trees: list[ast.Module]) -> set[str]:
    """Names that are read somewhere: attributes, and strings (getattr, tables of compatibility flags, dict keys)."""
    names: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                names.add(node.value)
    return names


def test_no_flag_is_defined_without_being_read() -> None:
    """The dest of every option is read as an attribute, or named in a string, in its own package or project."""
    dead = []
    groups: dict[str, list[Path]] = {}
    for path in sources():
        parts = path.relative_to(ROOT).parts
        groups.setdefault("/".join(parts[:2]) if parts[0] == "projects" else "common", []).append(path)
    for group, paths in groups.items():
        trees = [sources()[path] for path in paths]
        # The library's launch arguments are read in projects, and a project's by the library.
        others = groups["common"] if group != "common" else [path for path in sources() if path not in paths]
        trees += [sources()[path] for path in others]
        read = read_names(trees)
        for path in paths:
            dead += [f"{relative(path)}:{line} {name}" for name, line in flags_of(sources()[path]) if name not in read]
    assert not dead, "options that nobody reads: " + ", ".join(dead)


def test_every_flag_has_a_help_text() -> None:
    """Of commands and scripts; the rows with `dead` have none, for they have no effect."""
    silent = []
    for path, tree in sources().items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            words = {keyword.arg for keyword in node.keywords}
            names = [arg for arg in node.args if isinstance(arg, (ast.Constant, ast.JoinedStr))]
            if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument" and names:
                action = next((k.value for k in node.keywords if k.arg == "action"), None)
                hidden = isinstance(node.func.value, ast.Name) and node.func.value.id == "first"  # never shown
                if not words & {"help", None} and not hidden and ast.unparse(action or node) != "'version'":
                    silent.append(f"{relative(path)}:{node.lineno}")
            flag = isinstance(node.func, ast.Name) and node.func.id == "Flag" and len(node.args) < 4
            if flag and not words & {"help", "dead"}:
                silent.append(f"{relative(path)}:{node.lineno}")
    assert not silent, "flags without a help text: " + ", ".join(silent)


def test_common_knows_no_project_by_name() -> None:
    found = []
    for path, tree in sources().items():
        if path.relative_to(ROOT).parts[0] != "common":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "project":
                found.append(f"{relative(path)}:{node.lineno}")
    assert not found, "a difference between papers is an argument, not a name: " + ", ".join(found)
