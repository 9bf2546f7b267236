"""The registry: one row for each model that a project offers, reached through entry points.

A project lists its rows in `projects/<name>/registry.py`:

    from common.registry import ModelRow, Weights

    ROWS = [
        ModelRow(
            name="siga/TRBA", kind="recogniser", image_size=(32, 128), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
            charset="0123456789…", build="projects.siga.build:trba", open="projects.siga.reader:open_trba",
            weights=(Weights("SIGA_R", licence="academic use", where="the authors' drive"),), paper="SIGA, CVPR 2023"),
    ]

`build` and `open` are functions or "module:function" strings. Strings keep the module of rows free of torch, so that
`strlab models` and `strlab --help` stay fast; prefer them.

- `build(**options) -> nn.Module`: the model with random weights.
- `open(checkpoint: Path, options: dict, device: torch.device) -> Reader`: build with these options, load the file
  strictly (through `common.train.checkpoint.load`), put it on the device in eval mode and return what
  `common.infer.recognizer` describes. A checkpoint that does not fit raises `UserError`.

A thing registered is a thing tested: `tests/test_registry.py` builds every row, with `test_options` where the row has
them and on the meta device where `meta` is set.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from common.errors import UserError

GROUP = "strlab.projects"
OWN = {"strlab": "common.reader.registry"}  # what belongs to no project
Kind = Literal["recogniser", "pre-trainer", "generator"]
Target = Callable[..., Any] | str


@dataclass(frozen=True)
class Weights:
    """A published weight file: its name, the terms it is under, and where its authors put it (nothing is fetched)."""

    name: str
    licence: str
    where: str = ""
    sha256: str = ""
    note: str = ""


@dataclass(frozen=True)
class ModelRow:
    """One model of one project.

    Attributes:
        name: `project/Model`, as the command line takes it.
        kind: recogniser (reads text), pre-trainer (makes an encoder) or generator (makes images).
        build: function or "module:function"; `build(**options)` gives the module with random weights.
        image_size: (height, width) in pixels of the model's input.
        mean, std: per channel, of images in [0, 1].
        charset: the characters that it reads, in the index order of its codec; "" for other kinds.
        weights: published weight files and their licences.
        open: recognisers only: function or "module:function", see the module's docstring.
        options: build options that the row's name stands for; a checkpoint's metadata and the command line add to them.
        test_options: further options that make the model small enough for a test (width, depth).
        meta: build on the meta device in tests (the model is large and has no small form).
        paper: title and year of the publication.
        status: one phrase for the table of methods, for example "parity tested".
    """

    name: str
    kind: Kind
    build: Target
    image_size: tuple[int, int]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    charset: str = ""
    weights: tuple[Weights, ...] = ()
    open: Target | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    test_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    meta: bool = False
    paper: str = ""
    status: str = ""

    @property
    def project(self) -> str:
        """The part of the name before the slash."""
        return self.name.split("/", 1)[0]

    def make(self, **options: Any) -> Any:
        """Build the module with the row's options and these."""
        return resolve(self.build)(**{**self.options, **options})


def resolve(target: Target) -> Callable[..., Any]:
    """Return the function that a "module:function" string names; a function is returned as it is."""
    if callable(target):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def project_modules() -> dict[str, str]:
    """Names of the installed projects and the modules that hold their rows, from the entry points."""
    return {point.name: point.value for point in metadata.entry_points(group=GROUP)}


@functools.cache
def rows() -> tuple[ModelRow, ...]:
    """All rows of all projects. A project that cannot be imported is skipped with a warning, not with a crash."""
    found: list[ModelRow] = []
    for project, module in sorted((OWN | project_modules()).items()):
        if not _exists(module):
            continue
        try:
            found.extend(importlib.import_module(module).ROWS)
        except Exception as error:
            # Another project's broken installation must not stop this one.
            warnings.warn(f"project {project} is skipped: {type(error).__name__}: {error}", stacklevel=2)
    return tuple(found)


def _exists(module: str) -> bool:
    """True when the module can be found, without importing it (its parent packages are)."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def recognise(checkpoint: Path) -> str | None:
    """Return the registry entry that the tensor names of a file without metadata identify, None where none or several
    do.

    A project that knows its published files by their names has `RECOGNISE = "module:function"` next to its ROWS; the
    function takes the content of a checkpoint and returns an entry's name or None.
    """
    from common.train.checkpoint import load  # loads torch, which listing the models does without

    modules = [importlib.import_module(module) for module in project_modules().values() if _exists(module)]
    known = [resolve(module.RECOGNISE) for module in modules if hasattr(module, "RECOGNISE")]
    if not known:
        return None
    content = load(checkpoint)
    found = {name for name in (function(content) for function in known) if name}
    return found.pop() if len(found) == 1 else None


def find(name: str) -> ModelRow:
    """Return the row of that name (case does not matter). Raises `UserError` with the near names if there is none."""
    by_name = {row.name.lower(): row for row in rows()}
    if name.lower() in by_name:
        return by_name[name.lower()]
    near = get_close_matches(name.lower(), by_name, n=4, cutoff=0.3)
    names = ", ".join(by_name[key].name for key in near) or "see `strlab models`"
    raise UserError(f"--model: no model is called {name!r}; near names: {names}")


def project_module(project: str, module: str) -> Any | None:
    """Import `projects.<project>.<module>` next to the project's registry; None where the project has no such
    module."""
    registry = project_modules().get(project)
    if registry is None:
        raise UserError(f"no project is called {project!r}; there are: {', '.join(sorted(project_modules()))}")
    name = f"{registry.rpartition('.')[0]}.{module}"
    return importlib.import_module(name) if _exists(name) else None


def offered(module: str) -> Any | None:
    """The module `projects.<name>.<module>` of the first project that has one, such as `paint`; None where none has."""
    found = (project_module(project, module) for project in sorted(project_modules()))
    return next((one for one in found if one is not None), None)
