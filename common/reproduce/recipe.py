"""Recipes: a reproduction as the very commands a person would type.

`projects/<name>/recipe.toml`:

    title = "SIGA: self-supervised implicit glyph attention (CVPR 2023)"
    model = "siga/TRBA"                       # registry row of the reader that the last step evaluates; "" for none

    [published]                               # figures of the paper, as far as a source gives them
    data = "MJSynth + SynthText"
    protocol = "36 characters, case-insensitive"
    source = "the paper's poster"
    [[published.rows]]
    name = "SIGA_R"
    accuracy = { IIIT5k_3000 = 95.9, SVT = 92.7 }      # keys: folder names of the evaluation sets; values: %

    [smoke]                                   # one table a scale: smoke, cpu, gpu, paper; and paper-NAME for the other
                                              # published models, as paper-tiny; cpu-NAME for another way on a CPU
    note = "two minutes; tests the commands, learns nothing"
    corpus = "{strlab} data synth {data} …"   # run once where --data is not given; equal commands share one folder
    model = "siga/TRBA"                       # optional here: overrides the one above
    evaluate = "{out}/run/best_score.pth"     # checkpoint that `strlab eval` reads at the end; leave out for none
    evaluate_data = "{data}/evaluation"       # this is the default
    evaluate_flags = "--batch-size 32"        # optional, further flags of `strlab eval`
    run = "{out}/run"                         # folder of the run that the report shows; default {out}

    [[smoke.steps]]
    name = "masks"
    run = '''{python} projects/siga/mask_create/generate_mask.py --input {data}/training
             --output {out}/masks'''          # line ends are blanks; there is no shell: no pipes, no variables
    outputs = ["{out}/masks"]                 # optional: the step counts as finished only while these exist
    [[smoke.steps]]
    name = "train"
    run = "{python} projects/siga/train.py … --resume auto"

    [release]                                 # small readers of the method that can be compared with those of the other
                                              # recipes: corpus, images, seeds and threads are those of release.py
    [[release.steps]]
    name = "train seed {seed}"                # repeated for every seed
    run = "{python} … --num_iter {steps} --batch_size {batch} --manual_seed {seed} --resume auto"
    outputs = ["{out}/run-{seed}/best.pth"]
    [[release.steps]]
    name = "compare"                          # in a step without, a word with {seed} is repeated for each
    run = "{strlab} compare A={out}/run-{seed}/best.pth --data {data}/evaluation --out {out}/compare"

    [curve]                                   # `strlab curve --start NAME=FILE`: one point; {data} is
                                              # {root}/training/{words}, {batch}, {epochs} and, of
                                              # an epoch, {samples} and {steps} give the budget
    run = "{python} … --data_path {data} --eval_data_path {validation} --epochs {epochs} --output_dir {out}"
    start = "--finetune {pretrained}"         # added where weights to start from are given
    checkpoint = "{out}/checkpoint-{last}.pth"  # {last}: the number of the last epoch, from 0

    [sanity]                                  # `strlab sanity NAME` overfits 64 images; same keys as a scale, and
    at_least = 95.0                           # % of words that must be read, 36-character protocol

Placeholders: {data} {out} {python} {strlab} {device} (cpu or cuda) {scale}, {pretrained} for the value of
`--pretrained`; in [release] also {seed}, {images} for the images that a reader sees, {images/32} for their 32nd part,
and what `release.values` describes ({steps}, {rate}, …). Paths with blanks are safe: a command is split first and
filled in afterwards. A step that was interrupted is run again, so its command should resume by itself.
"""

from __future__ import annotations

import re
import shlex
import string
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import registry
from common.errors import UserError
from common.report.finished import PublishedRow
from common.reproduce import release

SCALES = ("smoke", "cpu", "gpu", "release", "paper")
PART = re.compile(r"^images/([1-9]\d*)$")
PLACEHOLDERS = {"data", "out", "python", "strlab", "device", "scale", "pretrained"}


@dataclass(frozen=True)
class Step:
    """One command of a scale, and the paths that exist when it has finished."""

    name: str
    run: str
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """One size of a reproduction; the fields are the keys of the module's docstring."""

    steps: tuple[Step, ...]
    note: str = ""
    corpus: str = ""
    model: str = ""
    evaluate: str = ""
    evaluate_data: str = "{data}/evaluation"
    evaluate_flags: str = ""
    run: str = "{out}"
    at_least: float = 0.0
    words: str = ""
    images: int = 0
    seeds: tuple[int, ...] = ()
    threads: int = 0

    def each_step(self) -> Iterator[Step]:
        """The steps, those with {seed} in their name once for each seed."""
        for step in self.steps:
            if "{seed}" not in step.name:
                yield step
                continue
            for seed in map(str, self.seeds):
                texts = [text.replace("{seed}", seed) for text in (step.name, step.run, *step.outputs)]
                yield Step(texts[0], texts[1], tuple(texts[2:]))


@dataclass(frozen=True)
class Recipe:
    """A project's recipe, with the paper's figures and where they come from."""

    name: str
    path: Path
    title: str
    scales: Mapping[str, Scale]
    model: str = ""
    published: Mapping[str, str] = field(default_factory=dict)
    published_rows: tuple[PublishedRow, ...] = ()
    sanity: Scale | None = None

    def scale(self, name: str) -> Scale:
        """The scale of that name. Raises `UserError` naming those that there are."""
        if name not in self.scales:
            raise UserError(f"--scale: {self.path} has no scale {name!r}; it has {', '.join(self.scales)}")
        return self.scales[name]


def recipe_path(project: str) -> Path:
    """Return the path of a project's recipe, next to its registry module."""
    module = registry.project_modules().get(project)
    package = find_spec(module.rpartition(".")[0]) if module else None
    if package is None or not package.submodule_search_locations:
        raise UserError(f"no project is called {project!r}; there are: {', '.join(sorted(registry.project_modules()))}")
    return Path(next(iter(package.submodule_search_locations))) / "recipe.toml"


def projects() -> list[str]:
    """The projects that are installed."""
    return sorted(registry.project_modules())


def curve(project: str) -> Mapping[str, str] | None:
    """The [curve] table of a project's recipe, None where it has none."""
    path = recipe_path(project)
    table = tomllib.loads(path.read_text("utf-8")).get("curve") if path.is_file() else None
    if table is not None:
        _only(path, "[curve]", table, {"run", "start", "checkpoint"})
    return table


def load(project: str) -> Recipe:
    """Read and check `projects/<project>/recipe.toml`. Raises `UserError` with file and field."""
    path = recipe_path(project)
    if not path.is_file():
        raise UserError(f"{path}: the project {project} has no recipe yet")
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    names = [*SCALES, *(name for name in data if name.startswith(("paper-", "cpu-")))]
    _only(path, "the top level", data, {"title", "model", "published", "sanity", "curve", *names})
    published = dict(data.get("published", {}))
    _only(path, "[published]", published, {"data", "protocol", "source", "rows"})
    rows = tuple(PublishedRow(row["name"], row["accuracy"]) for row in published.pop("rows", []))
    model = data.get("model", "")
    scales = {name: _scale(path, name, data[name], model) for name in names if name in data}
    sanity = _scale(path, "sanity", data["sanity"], model) if "sanity" in data else None
    return Recipe(project, path, data.get("title", project), scales, model, published, rows, sanity)


def _scale(path: Path, name: str, table: dict[str, Any], model: str) -> Scale:
    """One table of a scale as an object."""
    shared = {"words", "images", "seeds", "threads"}
    known = {f.name for f in fields(Scale)} - shared - ({"corpus"} if name == "release" else set())
    _only(path, f"[{name}]", table, known)
    steps = []
    for number, step in enumerate(table.get("steps", []), 1):
        _only(path, f"[[{name}.steps]] {number}", step, {"name", "run", "outputs"})
        if "name" not in step or "run" not in step:
            raise UserError(f"{path}: [[{name}.steps]] {number}: `name` and `run` are needed")
        steps.append(Step(step["name"], step["run"], tuple(step.get("outputs", ()))))
    if len({step.name for step in steps}) != len(steps):
        raise UserError(f"{path}: [[{name}.steps]]: two steps have the same name")
    table = {**table, "steps": tuple(steps), "model": table.get("model", model)}
    allowed = PLACEHOLDERS
    if name == "release":
        table |= release.budget()
        allowed = PLACEHOLDERS | release.PLACEHOLDERS
    scale = Scale(**table)
    for text in [scale.corpus, scale.evaluate, scale.evaluate_data, scale.run, *(step.run for step in steps)]:
        used = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        unknown = {name for name in used if PART.sub("images", name) not in allowed}
        if unknown:
            raise UserError(f"{path}: [{name}]: unknown placeholder {{{sorted(unknown)[0]}}} in {text!r}")
    return scale


def _only(path: Path, where: str, table: Any, known: set[str]) -> None:
    """Refuse keys that nobody would read."""
    if not isinstance(table, dict):
        raise UserError(f"{path}: {where}: a table is needed")
    unknown = sorted(set(table) - known)
    if unknown:
        raise UserError(f"{path}: {where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


class Values(dict[str, str]):
    """Values of the placeholders; {images/32} is the 32nd part of {images}."""

    def __missing__(self, name: str) -> str:
        return str(int(self["images"]) // int(PART.sub(r"\1", name)))


def fill(text: str, values: Mapping[str, str]) -> str:
    """One string with its placeholders filled in."""
    return text.format_map(values)


def command_line(text: str, values: Mapping[str, str], seeds: Sequence[int] = ()) -> list[str]:
    """A command of a recipe as arguments: split first, filled in afterwards, so that blanks in paths do no harm.

    `{strlab}` may stand for several words; they are separated by a line feed in `values`. A word with `{seed}` is
    repeated for each of `seeds`.
    """
    words: list[str] = []
    for word in shlex.split(text, comments=True):
        if "{seed}" in word and seeds:
            words.extend(fill(word.replace("{seed}", str(seed)), values) for seed in seeds)
            continue
        words.extend(fill(word, values).split("\n") if word == "{strlab}" else [fill(word, values)])
    return words
