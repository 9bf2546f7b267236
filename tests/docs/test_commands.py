"""Every command of README and docs exists with its flags; the fences marked `<!-- test -->` are run."""

from __future__ import annotations

import functools
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
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "projects").glob("*/README.md")])
FENCE = re.compile(r"(?P<mark><!-- test -->\s*)?^```bash\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHERS = ("torchrun", "accelerate", "python", "python3", "bash")


class Fence(NamedTuple):
    """A block of commands on a page."""

    page: Path
    commands: tuple[str, ...]
    tested: bool


def fences() -> list[Fence]:
    """All bash blocks; continued lines are joined, comments dropped."""
    found = []
    for page in PAGES:
        for match in FENCE.finditer(page.read_text("utf-8")):
            text = match["text"].replace("\\\n", " ")
            lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
            found.append(Fence(page, tuple(lines), bool(match["mark"])))
    return found


COMMANDS = sorted({(fence.page.relative_to(ROOT).as_posix(), line) for fence in fences() for line in fence.commands})


@functools.cache
def help_of(*command: str) -> str:
    """What a command's --help prints."""
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr[-500:]}"
    return done.stdout


def flags_of(words: list[str]) -> list[str]:
    """Names of the options among the words of a command."""
    return [word.split("=")[0] for word in words if re.match(r"--[a-zA-Z]", word)]


def check_strlab(words: list[str]) -> None:
    """A `strlab` command: it exists, and so do its flags."""
    name = " ".join(words[:2]) if words[0] in cli.GROUPS else words[0]
    assert name in cli.COMMANDS, f"strlab {name}: no such command"
    path = words[: len(name.split())]
    if name in ("data convert", "convert") and len(words) > len(path) and not words[len(path)].startswith("-"):
        path = words[: len(path) + 1]
    text = help_of(sys.executable, "-m", "common.cli", *path)
    missing = [flag for flag in flags_of(words) if flag != "--help" and not re.search(rf"{flag}\b", text)]
    assert not missing, f"strlab {name} has no {missing}"


def check_script(words: list[str]) -> None:
    """A script of a project: the file is there, and its help names the flags that follow it."""
    place = next((i for i, word in enumerate(words) if word.endswith((".py", ".sh"))), None)
    if place is None:
        return
    script = ROOT / words[place]
    assert script.is_file(), f"{words[place]}: no such script"
    flags = flags_of(words[place + 1 :])
    if script.suffix == ".py" and flags:
        text = help_of(sys.executable, words[place])
        missing = [flag for flag in flags if flag != "--help" and not re.search(rf"{flag}\b", text)]
        assert not missing, f"{words[place]} has no {missing}"


def check_make(words: list[str]) -> None:
    """A make target that exists; `reproduce-` and `sanity-` need the project."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in words:
        if "=" in target:
            continue
        family = re.match(r"(reproduce|sanity)-(\w+)$", target)
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
        check_make(words[1:])
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
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-1500:]}"
