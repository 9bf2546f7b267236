"""The rules of the house: who may import whom, how large things may be, no dead flags, no traces of a machine."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("common", "projects")
# Lower layers of common know nothing of the higher ones; a module may import from its own and from those on its right.
MAY_IMPORT = {
    "text": {"text"},
    "metrics": {"metrics", "text"},
    "models": {"models", "text"},
    "losses": {"losses", "text"},
    "augment": {"augment", "data"},  # its pixels: decode and resize
    "data": {"data", "text"},
    "train": {"train", "data", "text", "models", "losses", "metrics", "augment"},
    "infer": {"infer", "train", "data", "text", "models", "metrics", "augment"},
}
EVERYWHERE = {"errors", "files"}  # modules of common that every layer may use
COMPATIBILITY_TABLE = re.compile(r"compat|no_effect", re.IGNORECASE)
TRACES = re.compile(r"/work/|/home/\w|/root/|/tmp/[a-z]|\bpypi\.(?!org)|nexus|artifactory|index-url", re.IGNORECASE)


@functools.cache
def sources() -> dict[Path, ast.Module]:
    """Every Python file of the two packages, parsed."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path: ast.parse(path.read_text("utf-8"), str(path)) for path in files if "__pycache__" not in path.parts}


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def imported(tree: ast.Module) -> list[str]:
    """Dotted names that a module imports, those inside functions and under TYPE_CHECKING included."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_import_law() -> None:
    broken = []
    for path, tree in sources().items():
        place = path.relative_to(ROOT).parts
        for name in imported(tree):
            parts = name.split(".")
            if place[0] == "common" and parts[0] == "projects":
                broken.append(f"{relative(path)} imports {name}: common never imports projects")
            if place[0] == "projects" and parts[0] == "projects" and len(place) > 2 and parts[1:2] != [place[1]]:
                broken.append(f"{relative(path)} imports {name}: a project imports no other project")
            layer = MAY_IMPORT.get(place[1]) if place[0] == "common" == parts[0] and len(parts) > 1 else None
            if layer is not None and parts[1] in MAY_IMPORT and parts[1] not in layer:
                broken.append(f"{relative(path)} imports {name}: {place[1]} does not know {parts[1]}")
    assert not broken, "\n".join(broken)


def test_common_knows_no_project_by_name() -> None:
    found = []
    for path, tree in sources().items():
        if path.relative_to(ROOT).parts[0] != "common":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "project":
                found.append(f"{relative(path)}:{node.lineno}")
    assert not found, "a difference between papers is an argument, not a name: " + ", ".join(found)


def test_sizes() -> None:
    long_files = [
        f"{relative(path)}: {n}" for path in sources() if (n := len(path.read_text("utf-8").splitlines())) > 500
    ]
    assert not long_files, "files over 500 lines: " + ", ".join(long_files)
    everything = [
        (length(node), f"{relative(path)}:{node.name}") for path, tree in sources().items() for node in functions(tree)
    ]
    too_long = [f"{name}: {n}" for n, name in everything if n > 100]
    assert not too_long, "functions over 100 lines: " + ", ".join(too_long)
    over_60 = [f"{name}: {n}" for n, name in everything if n > 60]
    assert len(over_60) <= 0.03 * len(everything), (
        f"{len(over_60)} of {len(everything)} functions over 60 lines: {over_60}"
    )


def public_functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and methods of its public classes whose names have no leading underscore."""
    found = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += [item for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [node for node in found if not node.name.startswith("_")]


def test_public_functions_of_common_are_typed_and_documented() -> None:
    untyped, silent, count = [], [], 0
    for path, tree in sources().items():
        if path.relative_to(ROOT).parts[0] != "common":
            continue
        for node in public_functions(tree):
            count += 1
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls", "place", "file")]
            if bare:
                untyped.append(f"{relative(path)}:{node.lineno} {node.name}({', '.join(bare)})")
            inherited = node.name in ("forward", "extra_repr")  # documented by the class
            if not ast.get_docstring(node) and not inherited:
                silent.append(f"{relative(path)}:{node.lineno} {node.name}")
    assert len(untyped) <= 0.05 * count, "not annotated: " + "; ".join(untyped)
    assert len(silent) <= 0.10 * count, "not documented: " + "; ".join(silent)


def tabled_flag(node: ast.Call) -> list[tuple[str, int]]:
    """(dest, line) of a row of a flag table, `Flag("--name --other", …)`; none for rows with a `dead` field, which
    --help lists under "no effect" and which are announced when given."""
    first = node.args[0] if node.args else None
    dead = any(keyword.arg == "dead" for keyword in node.keywords)
    if dead or not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
        return []
    return [(first.value.split()[0].removeprefix("--").replace("-", "_"), node.lineno)]


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


def tracked_texts() -> list[Path]:
    """Text files of the repository that its authors wrote (goldens are measured data)."""
    folders = [ROOT / name for name in (*PACKAGES, "docs", "tests")]
    files = [path for folder in folders for path in folder.rglob("*")] + [p for p in ROOT.iterdir() if p.is_file()]
    suffixes = {".py", ".md", ".toml", ".sh", ".yaml", ".yml", ".txt", ".cfg", ".lock", ""}
    return [
        path
        for path in files
        if path.is_file()
        and path.suffix in suffixes
        and not {"goldens", "__pycache__"} & set(path.parts)
        and path.name not in (".gitignore", "test_house.py", ".git")
    ]


def test_no_trace_of_a_machine() -> None:
    found = []
    for path in tracked_texts():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{relative(path)}: {match[0]}" for match in TRACES.finditer(text)]
    assert not found, "paths or hosts of one machine: " + ", ".join(found)


def windows(path: Path, size: int = 6) -> list[tuple[str, ...]]:
    """Runs of `size` non-blank lines that are no imports, docstring fences or lone brackets."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    boilerplate = ("import ", "from ", "#", '"""', "if __name__ ==", "raise SystemExit(main())", "@command")
    kept = [line for line in lines if line and not line.startswith(boilerplate) and len(line) > 1]
    return [tuple(kept[i : i + size]) for i in range(len(kept) - size + 1)]


def test_nothing_stands_in_two_projects() -> None:
    """No run of six equal lines in two projects, and few of them anywhere."""
    where: dict[tuple[str, ...], set[str]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for path in sources():
        parts = path.relative_to(ROOT).parts
        group = "/".join(parts[:2]) if parts[0] == "projects" else "common"
        for window in windows(path):
            where.setdefault(window, set()).add(group)
            counts[window] += 1
    shared = [f"{sorted(groups)}: {window[0]}" for window, groups in where.items() if len(groups) > 1]
    assert not shared, f"{len(shared)} runs stand twice; put them into common: " + "; ".join(shared[:12])
    repeated = sum(count - 1 for count in counts.values() if count > 1)
    assert repeated <= 0.05 * sum(counts.values()), (
        f"{repeated} of {sum(counts.values())} six-line runs are repetitions"
    )


@pytest.mark.parametrize(
    "path", ["README.md", "LICENSE", "CITATION.cff", "Makefile", "pyproject.toml", "requirements.lock", ".ci/run"]
)
def test_the_house_has_its_parts(path: str) -> None:
    assert (ROOT / path).is_file()
