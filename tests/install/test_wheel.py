"""A wheel built from the tree, installed elsewhere, works from any folder; the lock fits every supported Python."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.common import toy
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and its scripts."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("common", "projects", "pyproject.toml", "README.md", "LICENSE", "strlab.py"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / "src" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run(build, cwd=folder / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)]
    subprocess.run(install, capture_output=True, text=True, check=True)
    return folder / "site"


def run(site: Path, cwd: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    """Run a command with the installed package first on the path; `strlab` is the installed script."""
    script = [str(site / "bin" / "strlab"), *words[1:]] if words[0] == "strlab" else list(words)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, *script], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def snapshot(site: Path) -> set[str]:
    return {path.relative_to(site).as_posix() for path in site.rglob("*") if "__pycache__" not in path.parts}


def test_it_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Another folder called `common` lies next to the work; nothing is written into the package."""
    before = snapshot(installed)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    few = ["--train", "8", "--validation", "2", "--evaluation", "2", "--difficulty", "easy", "--workers", "1"]
    done = run(installed, tmp_path, "strlab", "data", "synth", "words", *few)
    assert done.returncode == 0 and (tmp_path / "words" / "training").is_dir(), done.stderr
    done = run(installed, tmp_path, "strlab", "reproduce", "siga", "--scale", "smoke", "--dry-run")
    assert done.returncode == 0, done.stderr
    scripts = re.findall(r"\S+/projects/\S+\.py", done.stdout)
    assert scripts and all(Path(script).is_relative_to(installed) for script in scripts)
    assert f"{tmp_path}/outputs" in done.stdout or " outputs/siga/smoke" in done.stdout
    done = run(installed, tmp_path, scripts[-1], "--help")
    assert done.returncode == 0, done.stderr
    assert snapshot(installed) == before


def test_read_and_modules(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(toy.crop("a", (100, 32)))
    done = run(installed, tmp_path, "strlab", "read", "x.png", "--device", "cpu")
    ships = any((installed / "common" / "weights").glob("*.safetensors"))
    assert done.returncode == (0 if ships else 2), done.stderr
    assert ("reader: " if ships else "no trained reader ships") in done.stderr
    done = run(installed, tmp_path, "-m", "projects.dig.run_class_finetuning", "--help")
    assert done.returncode == 0 and "--nb_classes" in done.stdout, done.stderr
    done = run(installed, tmp_path, "-c", "import strlab; print(strlab.__file__, len(strlab.models()) > 20)")
    assert done.stdout.split() == [str(installed / "strlab.py"), "True"], done.stderr


def test_a_folder_that_shadows_the_package_is_named(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").touch()
    done = run(installed, tmp_path, "-m", "projects.dig.run_class_finetuning", "--help")
    assert done.returncode and done.stderr.strip() == (
        f"error: {tmp_path / 'common'} shadows strlab's package `common`; rename it or start from another folder"
    )
    done = run(installed, tmp_path, "-c", "import strlab")
    assert "shadows strlab's package `common`" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_smoke_recipe_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    before = snapshot(installed)
    done = run(
        installed, tmp_path, "strlab", "reproduce", "mgpstr", "--scale", "smoke", STRLAB_HOME=str(tmp_path / "home")
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "home" / "outputs" / "mgpstr" / "smoke" / "report.html").is_file()
    assert snapshot(installed) == before and [path.name for path in tmp_path.iterdir()] == ["home"]


def pinned() -> list[Requirement]:
    """The lines of the lock file."""
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_pinned_packages_accept_the_first_release_of_the_oldest_python() -> None:
    """Debian 12 has Python 3.11.2; one package that wants 3.11.5 keeps the whole lock from being installed there."""
    found = {}
    for pin in pinned():
        with contextlib.suppress(PackageNotFoundError):
            here = distribution(pin.name)
            if str(pin.specifier) == f"=={here.version}":
                found[pin.name] = here.metadata["Requires-Python"] or ">=3"
    refusing = {name: wanted for name, wanted in found.items() if not SpecifierSet(wanted).contains("3.11.0")}
    if len(found) <= 20:
        pytest.skip("the packages installed here are not those of the lock file")
    assert not refusing


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_lock_fits(version: str) -> None:
    """On each supported Python every package has one pin, which satisfies pyproject.toml."""
    environment = {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": "linux",
                   "platform_machine": "x86_64", "platform_system": "Linux", "extra": ""}  # fmt: skip
    pins = [pin for pin in pinned() if pin.marker is None or pin.marker.evaluate(environment)]
    names = Counter(canonicalize_name(pin.name) for pin in pins)
    assert max(names.values()) == 1, [name for name, count in names.items() if count > 1]
    exact = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    wanted = [*PROJECT["dependencies"], *(one for extra in ("dev", "docs", "export", "serve") for one in
              PROJECT["optional-dependencies"][extra])]  # fmt: skip
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in exact, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(exact[name], prereleases=True), f"{name} {exact[name]}"
