"""What is written in prose: no trace of a machine, references that resolve, public functions with types."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.tree import PACKAGES, ROOT, relative, sources

TRACES = re.compile(r"/(?:work|root)/|/home/\w|/tmp/[a-z]|\bpypi\.(?!org)|nexus|artifactory|index-url", re.IGNORECASE)
ORIGINALS = {path.stem: path for path in sorted((ROOT / "docs" / "originals").glob("*.md"))}
SPEC = re.compile(r"\b[Ss]pec(?:ification)?s?,? (?:sections? )?(\d+(?:\.\d+)?(?:(?:, | and |, and )\d+\.\d+)*)")
EQUATION = re.compile(r"\b(?:[Ee]quations?|eqs?\.) \(?(\d+)")
PENDING: set[str] = set()
"""Files whose equations are not in their README's table yet; target: none."""
SHORT = 90
"""Ceiling on docstrings of at most five words: one that only repeats the name is not written."""


def tracked_texts() -> list[Path]:
    """Text files that the authors of the repository wrote (goldens are measured data)."""
    folders = [ROOT / name for name in (*PACKAGES, "docs", "tests")]
    files = [path for folder in folders for path in folder.rglob("*")] + [p for p in ROOT.iterdir() if p.is_file()]
    suffixes = {".py", ".md", ".toml", ".sh", ".yaml", ".yml", ".txt", ".cfg", ".lock", ".html", ".j2", ""}
    return [
        path
        for path in files
        if path.is_file()
        and path.suffix in suffixes
        and not {"goldens", "__pycache__"} & set(path.parts)
        and path != Path(__file__)
        and path.name not in (".gitignore", ".git")
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


def headings(path: Path) -> set[str]:
    """Numbers of the sections of a document, and of the items of its section 9 as 9.1, 9.2, …"""
    text = path.read_text("utf-8")
    items = re.findall(r"^(?:\| )?(\d+)(?:\.| \|)", text.partition("\n## 9.")[2], re.MULTILINE)
    return set(re.findall(r"^#+ (\d+(?:\.\d+)?)\b", text, re.MULTILINE)) | {f"9.{item}" for item in items}


def test_every_original_is_described() -> None:
    assert set(ORIGINALS) == {path.name for path in (ROOT / "projects").iterdir() if (path / "registry.py").is_file()}


def test_references_to_sections_of_the_originals_resolve() -> None:
    """`spec section 3.4` in a project means docs/originals/<project>.md; elsewhere some page must have the section."""
    known = {name: headings(path) for name, path in ORIGINALS.items()}
    broken, count = [], 0
    for path in tracked_texts():
        parts = path.relative_to(ROOT).parts
        if path.suffix not in (".py", ".md", ".toml", ".yaml") or "originals" in parts:
            continue
        own = [name for name in known if name in parts or f"_{name}" in path.name]
        for match in SPEC.finditer(re.sub(r"\s+", " ", path.read_text("utf-8"))):
            for number in re.findall(r"\d+(?:\.\d+)?", match[1]):
                count += 1
                if not any(number in known[name] for name in own or known):
                    broken.append(f"{relative(path)}: {match[0]}")
    assert count > 10 and not broken, "no such section: " + "; ".join(broken)


@pytest.mark.parametrize("project", ORIGINALS)
def test_references_to_equations_are_in_the_readme(project: str) -> None:
    """The README's table says which file and function has an equation of the paper; the code may name no other one."""
    readme = (ROOT / "projects" / project / "README.md").read_text("utf-8")
    table = "\n".join(line for line in readme.splitlines() if line.startswith("|"))
    named = set(re.findall(r"\((\d+)\)|\b(?:[Ee]quations?|[Ee]qs?\.) \(?(\d+)", table))
    listed = {number for pair in named for number in pair if number}
    missing = []
    for path in sources():
        if path.relative_to(ROOT).parts[:2] == ("projects", project):
            text = re.sub(r"\([A-Z][a-z]+ et al\.[^)]*\)", "", path.read_text("utf-8"))  # of other papers
            missing += [f"{relative(path)}: {m[0]}" for m in EQUATION.finditer(text) if m[1] not in listed]
    missing = [entry for entry in missing if entry.split(":")[0] not in PENDING]
    assert not missing, f"equations that the table of projects/{project}/README.md does not list: {missing}"


def public_functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and methods of its public classes whose names have no leading underscore."""
    found = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += [item for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [node for node in found if not node.name.startswith("_")]


def test_public_functions_of_common_are_typed() -> None:
    untyped, count = [], 0
    for path, tree in sources().items():
        if path.relative_to(ROOT).parts[0] != "common":
            continue
        for node in public_functions(tree):
            count += 1
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls", "place", "file")]
            if bare:
                untyped.append(f"{relative(path)}:{node.lineno} {node.name}({', '.join(bare)})")
    assert len(untyped) <= 0.05 * count, "not annotated: " + "; ".join(untyped)


def test_few_docstrings_say_almost_nothing() -> None:
    found = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = ast.get_docstring(node)
                if text and len(text.split()) <= 5:
                    found.append(f"{relative(path)}:{node.lineno} {text}")
    assert len(found) <= SHORT, f"{len(found)}, at most {SHORT}: {found[-20:]}"


def test_files_that_are_named_exist() -> None:
    """Paths of source files in prose, docstrings and messages; projects/toy is the guide's example."""
    missing = []
    for path in tracked_texts():
        if path.suffix not in (".py", ".md", ".toml", ".yml", ".yaml"):
            continue
        for match in re.finditer(r"(?<![\w/.-])(?:tests/)?(?:common|projects)/[a-z_/]+\.py\b", path.read_text("utf-8")):
            if not (ROOT / match[0]).exists() and not match[0].startswith("projects/toy/"):
                missing.append(f"{relative(path)}: {match[0]}")
    assert not missing, "; ".join(missing)


@pytest.mark.parametrize("project", sorted(ORIGINALS))
def test_the_table_from_paper_to_code_names_what_is_there(project: str) -> None:
    """Each README leads from an equation to the function that computes it; every name in that table is defined in a
    file that the same row names."""
    folder = ROOT / "projects" / project
    text = (folder / "README.md").read_text("utf-8")
    section = text.partition("\n## Where the paper is in the code\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and ".py" in line]
    assert len(rows) >= 9, "no table from the paper to the code"
    for row in rows:
        cell = row.rstrip("| ").rpartition(" | ")[2]
        files = [next((p for p in (folder / name, ROOT / name) if p.is_file()), None)
                 for name in re.findall(r"\w[\w/]*\.py\b", cell)]  # fmt: skip
        assert all(files), row
        code = "".join(path.read_text("utf-8") for path in files)
        quoted = re.sub(r"[\w/]+\.py\b:?|\[|\]\([^)]*\)", " ", " ".join(re.findall(r"`([^`]*)`", cell)))
        names = {part for name in re.findall(r"[\w.]+", quoted) for part in name.split(".")}
        missing = [name for name in names if not re.search(rf"^\s*(?:def|class) {name}\b", code, re.MULTILINE)]
        assert not missing, f"{missing} of: {row}"
