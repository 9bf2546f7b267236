"""Every command of README and docs exists with its flags; the fences marked `<!-- test -->` are run."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from common import cli

ROOT = Path(__file__).resolve().parent.parent.parent
WRITTEN = (
    path for path in (ROOT / "docs").rglob("*.md") if "originals" not in path.parts
)  # those show others' commands
PAGES = sorted([ROOT / "README.md", *WRITTEN, *(ROOT / "projects").glob("*/README.md")])
LAUNCHERS = ("torchrun", "accelerate", "python", "python3", "bash")
STARTS = re.compile(rf"([A-Z_]+=\S* )*({'|'.join(('strlab', 'make', *LAUNCHERS))}|[.]/\S+[.]py) ")


class Fence(NamedTuple):
    """A block of commands on a page."""

    page: Path
    commands: tuple[str, ...]
    tested: bool


def blocks(text: str) -> list[tuple[str, list[str], bool]]:
    """(language, lines, marked) of every fence of a page, and of every indented block (language "") after a blank
    line."""
    found, lines, before = [], iter(text.splitlines()), ["", ""]
    for line in lines:
        if line.startswith("```"):
            marked = "<!-- test -->" in "".join(before[-2:])
            inside = list(itertools.takewhile(lambda x: not x.startswith("```"), lines))
            found.append((line.strip("` "), inside, marked))
        elif line.startswith("    ") and not before[-1].strip():
            found.append(("", [line, *itertools.takewhile(lambda x: x.startswith("    "), lines)], False))
        before.append(line)
    return found


def fences() -> list[Fence]:
    """All commands: bash blocks, and what starts like a command in blocks of no language. Continued lines are joined,
    comments dropped."""
    found = []
    for page in PAGES:
        for language, raw, marked in blocks(page.read_text("utf-8")):
            lines = [line.strip() for line in "\n".join(raw).replace("\\\n", " ").splitlines() if line.strip()]
            lines = [line for line in lines if not line.startswith("#")]
            if language == "":
                lines = [line for line in lines if STARTS.match(line)]
            if language in ("", "bash") and lines:
                found.append(Fence(page, tuple(lines), marked))
    return found


COMMANDS = sorted({(fence.page.relative_to(ROOT).as_posix(), line) for fence in fences() for line in fence.commands})


@functools.cache
def help_of(name: str) -> str:
    """The help of a `strlab` command, `data synth` or `data convert gt`, from its parser."""
    parser = cli.build_parser(name if name in cli.COMMANDS else name.rpartition(" ")[0])
    for word in name.split():
        (group,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        assert word in group.choices, f"strlab {name}: {word} is not one of {', '.join(group.choices)}"
        parser = group.choices[word]
    return parser.format_help()


@functools.cache
def source_of(project: str) -> str:
    """The code of a project and of the library, where its options are defined."""
    folders = (ROOT / "projects" / project, ROOT / "common")
    return "\n".join(path.read_text("utf-8") for folder in folders for path in sorted(folder.rglob("*.py")))


def flags_of(words: list[str]) -> list[str]:
    """Names of the options among the words of a command."""
    return [word.split("=")[0] for word in words if re.match(r"--[a-zA-Z]", word)]


def absent(flags: list[str], text: str) -> list[str]:
    """The flags that a help text does not name."""
    return [flag for flag in flags if flag != "--help" and not re.search(rf"{re.escape(flag)}\b", text)]


def check_strlab(words: list[str]) -> None:
    """A `strlab` command: it exists, and so do its flags."""
    name = " ".join(words[:2]) if words[0] in cli.GROUPS else words[0]
    assert name in cli.COMMANDS, f"strlab {name}: no such command"
    path = words[: len(name.split())]
    if name in ("data convert", "convert") and len(words) > len(path) and not words[len(path)].startswith("-"):
        path = words[: len(path) + 1]
    text = help_of(" ".join(path))
    missing = absent(flags_of(words), text)
    assert not missing, f"strlab {name} has no {missing}"


def check_script(words: list[str]) -> None:
    """A script of a project: the file is there, and the code defines the flags that follow it."""
    place = next((i for i, word in enumerate(words) if word.endswith((".py", ".sh"))), None)
    if place is None:
        return
    script = ROOT / words[place]
    assert script.is_file(), f"{words[place]}: no such script"
    code = source_of(Path(words[place]).parts[1])
    # Options stand in the code as "--name" or, in the projects' tables, as "name" alone.
    missing = [
        flag
        for flag in flags_of(words[place + 1 :])
        if flag != "--help" and not re.search(rf"{flag}\b|\b{flag[2:]}\b", code)
    ]
    assert not missing, f"{words[place]} has no {missing}"


def check_make(words: list[str]) -> None:
    """A make target that exists; `reproduce-`, `release-` and `sanity-` need the project."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in words:
        if "=" in target:
            continue
        family = re.match(r"(reproduce|release|sanity)-(\w+)$", target)
        known = (
            (ROOT / "projects" / family[2]).is_dir() if family else re.search(rf"^{target}:", makefile, re.MULTILINE)
        )
        assert known, f"make {target}: no such target"


@pytest.mark.parametrize("page, line", COMMANDS, ids=lambda value: value[:60])
def test_a_documented_command_exists_with_its_flags(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[0] == "strlab":
        check_strlab(words[1:])
    elif words[0] == "make":
        check_make(words[1 : words.index("&&") if "&&" in words else None])
    elif words[0].startswith("./"):  # in the script's own folder
        (script,) = (path for path in (ROOT / page).parent.rglob(words[0]) if os.access(path, os.X_OK))
        check_script([str(script.relative_to(ROOT)), *words[1:]])
        for name in re.findall(r"[+]experiment=(\S+)", line):
            assert list(script.parent.rglob(f"experiment/{name}.yaml")), f"+experiment={name}: no such file"
    elif words[0] in LAUNCHERS:
        check_script(words)


@pytest.mark.parametrize(
    "page",
    sorted({fence.page for fence in fences() if fence.tested}),
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_marked_commands_run(page: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path / "projects").symlink_to(ROOT / "projects")
    for fence in fences():
        if fence.page != page or not fence.tested:
            continue
        for line in fence.commands:
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-1500:]}"
