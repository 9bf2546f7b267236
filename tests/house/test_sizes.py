"""How large files and functions may be, how small files may not be, and who may take a whole Namespace."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess

import pytest

from tests.house.tree import ROOT, functions, length, relative, sources

FLOOR = 25
SMALL_FILES = 0
"""Ceiling on product files below the floor that are neither packages, registries nor configurations."""
NAMESPACES = 3
"""Ceiling on `argparse.Namespace` in projects: the sub-commands that MGP-STR (two) and TextSSR add to `strlab`."""
TRAIN_FILES = 10
"""Files of common/train."""
WRITTEN = 0
"""Ceiling on assignments to options after parsing."""
LOOPS = {"common/train/loop.py", "projects/textssr/run.py"}
"""The loop, and the engine that gives it accelerate's gradients."""
ROOT_FILES = {
    ".dockerignore", ".gitattributes", ".gitignore", "CITATION.cff", "Dockerfile", "LICENSE", "Makefile", "README.md",
    "environment.yml", "mkdocs.yml", "pyproject.toml", "requirements.lock", "strlab.py",
}  # fmt: skip


def test_files_and_functions_are_not_too_long() -> None:
    long_files = [f"{relative(p)}: {n}" for p in sources() if (n := len(p.read_text("utf-8").splitlines())) > 500]
    assert not long_files, "files over 500 lines: " + ", ".join(long_files)
    everything = [
        (length(node), f"{relative(p)}:{node.name}") for p, tree in sources().items() for node in functions(tree)
    ]
    too_long = [f"{name}: {n}" for n, name in everything if n > 100]
    assert not too_long, "functions over 100 lines: " + ", ".join(too_long)
    over_60 = [f"{name}: {n}" for n, name in everything if n > 60]
    assert len(over_60) <= 0.03 * len(everything), f"{len(over_60)} of {len(everything)} functions over 60: {over_60}"


def test_files_are_not_too_small() -> None:
    """A file tells a story; a few lines belong to the file that uses them."""
    small = []
    for path in sources():
        lines = len(path.read_text("utf-8").splitlines())
        named = path.name in ("__init__.py", "registry.py") or {"configs", "tools"} & set(path.parts)
        if lines < FLOOR and not named:
            small.append(f"{relative(path)}: {lines}")
    assert len(small) <= SMALL_FILES, f"{len(small)}, at most {SMALL_FILES}: {', '.join(small)}"


def test_options_end_at_main() -> None:
    found = []
    for path in sources():
        if relative(path).startswith("projects/"):
            text = path.read_text("utf-8")
            found += [f"{relative(path)}" for _ in re.finditer(r"argparse\.Namespace", text)]
    counts = {name: found.count(name) for name in sorted(set(found))}
    assert len(found) <= NAMESPACES, f"{len(found)}, at most {NAMESPACES}: {counts}"


def test_nothing_is_written_to_options_after_parsing() -> None:
    """`options.x = …` outside a function called parse (or one that builds the parser's result)."""
    written = []
    for path, tree in sources().items():
        for function in functions(tree):
            if function.name.startswith(("parse", "_parse", "get_args", "settle", "_small_sizes")):
                continue
            for node in ast.walk(function):
                targets = node.targets if isinstance(node, ast.Assign) else []
                for target in targets:
                    if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") in (
                        "options",
                        "opt",
                        "args",
                    ):
                        written.append(f"{relative(path)}:{node.lineno}")
    assert len(written) <= WRITTEN, f"{len(written)}, at most {WRITTEN}: {written}"


def test_one_loop() -> None:
    """`zero_grad` outside the loop and benchmarks."""
    found = {relative(p) for p in sources() if "zero_grad" in p.read_text("utf-8") and "bench" not in relative(p)}
    assert found <= LOOPS, f"a training loop of its own: {sorted(found - LOOPS)}"


def test_files_of_the_training_library() -> None:
    files = sorted((ROOT / "common" / "train").glob("*.py"))
    assert len(files) <= TRAIN_FILES, f"{len(files)}: {[path.name for path in files]}"


@pytest.mark.parametrize(
    "path", ["README.md", "LICENSE", "CITATION.cff", "Makefile", "pyproject.toml", "requirements.lock", ".ci/run"]
)
def test_the_house_has_its_parts(path: str) -> None:
    assert (ROOT / path).is_file()


def test_nothing_strays_at_the_root() -> None:
    """A picture that a command wrote into the working folder was committed once."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no checkout of git")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # a checkout that belongs to somebody else
        pytest.skip(listed.stderr)
    files = {name for name in listed.stdout.splitlines() if "/" not in name}
    assert files <= ROOT_FILES, f"at the root: {sorted(files - ROOT_FILES)}"
