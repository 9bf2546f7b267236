"""Run a recipe: print the commands, skip finished steps, evaluate, write the report.

The form of a recipe is described in `common/recipe.py`. Nothing here knows a project; a project may offer
`projects/<name>/report.py: build(run_dir: Path, recipe: Finished) -> common.infer.report.Report`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import recipe as recipes
from common import registry
from common.data.lmdb import lmdb_folders
from common.errors import UserError
from common.files import write_text
from common.recipe import Recipe, Scale
from common.run_command import StepFailed, run_command

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Done:
    """A finished step: its command and how long it took."""

    name: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Finished:
    """What the report of a reproduction is made from."""

    recipe: Recipe
    scale_name: str
    scale: Scale
    data: Path
    out: Path
    own_data: bool  # True where the user gave the data with --data
    steps: tuple[Done, ...]
    checkpoint: Path | None

    def save(self) -> None:
        """Keep what is needed to write the report again: `finished.json` in the output folder."""
        entry = {
            "recipe": self.recipe.name,
            "scale": self.scale_name,
            "data": str(self.data),
            "own_data": self.own_data,
        }
        entry["steps"] = [{"name": step.name, "command": step.command, "seconds": step.seconds} for step in self.steps]
        write_text(self.out / "finished.json", json.dumps(entry, indent=1))

    @classmethod
    def load(cls, out: Path) -> Finished:
        """What `save` kept, with the recipe as it is now. Raises `UserError` for another file."""
        path = out / "finished.json"
        try:
            entry = json.loads(path.read_text("utf-8"))
            steps = tuple(Done(step["name"], tuple(step["command"]), step["seconds"]) for step in entry["steps"])
            recipe = recipes.load(entry["recipe"])
            runner = Runner(recipe, entry["scale"], recipe.scale(entry["scale"]), out, Path(entry["data"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the note of a finished reproduction ({error}); run it again") from None
        return runner.finished(steps, entry["own_data"])

    @property
    def run_dir(self) -> Path:
        """Folder of the training run that the report shows."""
        return Path(recipes.fill(self.scale.run, {"data": str(self.data), "out": str(self.out)}))

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What `strlab eval` wrote, None where nothing was evaluated."""
        path = self.out / "eval" / "eval.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None


class Runner:
    """Runs the steps of one scale in order, with a stamp file for each finished one.

    A stamp holds a hash of the command, of the inputs and of the stamp before it, so a step is run again when anything
    before it was. Stamps are written atomically after the command ended with status 0.
    """

    def __init__(self, recipe: Recipe, scale_name: str, scale: Scale, out: Path, data: Path | None) -> None:
        self.recipe, self.scale_name, self.scale, self.out = recipe, scale_name, scale, out
        self.own_data = data is not None
        self.data = data or ROOT / "data" / f"synth-{_digest(scale.corpus)[:8]}"
        if data is None and not scale.corpus:
            raise UserError(
                f"--data: the scale {scale_name} of {recipe.name} needs a data folder (training/, evaluation/)"
            )
        if data is not None and not data.is_dir():
            raise UserError(f"--data: {data} is no folder; give one with training/ and evaluation/ below it")

    def values(self) -> dict[str, str]:
        """The placeholders' values; paths below the working folder are shown relative to it."""
        python = _short(Path(sys.executable))
        strlab = Path(sys.executable).with_name("strlab")
        return {
            "data": _short(self.data),
            "out": _short(self.out),
            "python": python,
            "scale": self.scale_name,
            "strlab": _short(strlab) if strlab.exists() else f"{python}\n-m\ncommon.cli",
            "device": _device(),
        }

    def plan(self) -> list[tuple[str, list[str], tuple[Path, ...], Path]]:
        """(name, command, outputs, stamp file) of every step, the corpus first and the evaluation last."""
        values, stamps = self.values(), self.out / "steps"
        plan = []
        if not self.own_data:
            command = recipes.command_line(self.scale.corpus, values)
            plan.append(("corpus", command, (self.data,), self.data.with_name(self.data.name + ".done.json")))
        for step in self.scale.steps:
            outputs = tuple(ROOT / recipes.fill(path, values) for path in step.outputs)
            command = recipes.command_line(step.run, values)
            plan.append((step.name, command, outputs, stamps / f"{step.name}.json"))
        if self.scale.evaluate:
            text = "{strlab} eval --checkpoint " + self.scale.evaluate + " --data " + self.scale.evaluate_data
            text += " --out {out}/eval " + (f"--model {self.scale.model} " if self.scale.model else "")
            command = recipes.command_line(text + self.scale.evaluate_flags, values)
            plan.append(("evaluate", command, (self.out / "eval" / "eval.json",), stamps / "evaluate.json"))
        return plan

    def run(self, dry_run: bool = False, fresh: bool = False) -> Finished:
        """Run what is not finished. Raises `UserError` where a step fails, saying how to go on."""
        if fresh and not dry_run:
            _set_aside(self.out)
        plan, done, previous = self.plan(), [], self._data_print()
        for number, (name, command, outputs, stamp) in enumerate(plan, 1):
            line = " ".join(shlex.quote(word) for word in command)
            print(f"[{number}/{len(plan)}] {name}\n    {line}", flush=True)
            digest = _digest(line, previous)
            old = None if fresh and dry_run else _stamp(stamp, digest, outputs)
            if old is not None:
                print(f"    finished before, took {_clock(old['seconds'])}")
            elif not dry_run:
                old = self._run_step(name, command, stamp, digest)
            done.append(Done(name, tuple(command), old["seconds"] if old else 0.0))
            previous = old["id"] if old else digest
        return self.finished(tuple(done), self.own_data)

    def finished(self, steps: tuple[Done, ...], own_data: bool) -> Finished:
        """What the report is made from."""
        checkpoint = ROOT / recipes.fill(self.scale.evaluate, self.values()) if self.scale.evaluate else None
        return Finished(self.recipe, self.scale_name, self.scale, self.data, self.out, own_data, steps, checkpoint)

    def _run_step(self, name: str, command: list[str], stamp: Path, digest: str) -> dict[str, Any]:
        """Run one command and stamp it."""
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        try:
            seconds = run_command(command, cwd=ROOT, log=self.out / "logs" / f"{name}.log")
        except StepFailed as failure:
            again = f"strlab reproduce {self.recipe.name} --scale {self.scale_name}"
            again = f"strlab sanity {self.recipe.name}" if self.scale_name == "sanity" else again
            again += f" --data {shlex.quote(str(self.data))}" if self.own_data else ""
            raise UserError(f"step {name}: {failure}; finished steps are kept: go on with `{again}`") from None
        entry = {"hash": digest, "id": uuid.uuid4().hex, "seconds": round(seconds, 1), "ended": time.time()}
        write_text(stamp, json.dumps(entry))
        print(f"    done in {_clock(seconds)}", flush=True)
        return entry

    def _data_print(self) -> str:
        """What the first step depends on: the user's files by size and time; nothing for a corpus that is rendered."""
        if not self.own_data:
            return ""
        files = [folder / "data.mdb" for folder in lmdb_folders(self.data)]
        return _digest(*(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files))


def write_report(finished: Finished) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into the output folder, by the project's own builder if it has one."""
    from common.infer.summary import standard_report

    module = registry.project_module(finished.recipe.name, "report")
    report = module.build(finished.run_dir, finished) if module else standard_report(finished)
    return report.write(finished.out)


def pick_scale(name: str, recipe: Recipe) -> str:
    """`auto` is gpu where CUDA can be used and the recipe has that scale, else cpu."""
    if name != "auto":
        return name
    return "gpu" if _device() == "cuda" and "gpu" in recipe.scales else "cpu"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab reproduce`."""
    parser = subparsers.add_parser("reproduce", help="run a project's recipe", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="project: siga, mgpstr, dig, ssm, textssr")
    parser.add_argument(
        "--scale", default="auto", choices=["auto", *recipes.SCALES], help="auto: gpu if CUDA is there, else cpu"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="training/ and evaluation/ below it; default: the embedded corpus"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: outputs/NAME/SCALE")
    parser.add_argument(
        "--fresh", action="store_true", help="start anew: earlier results get another name; a rendered corpus is kept"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.set_defaults(run=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    recipe = recipes.load(args.name)
    scale_name = pick_scale(args.scale, recipe)
    scale = recipe.scale(scale_name)
    out = (args.out or ROOT / "outputs" / recipe.name / scale_name).absolute()
    print(f"{recipe.title}\nscale {scale_name}: {scale.note}", flush=True)
    # A terminated run ends its child, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    finished = Runner(recipe, scale_name, scale, out, args.data.absolute() if args.data else None).run(
        args.dry_run, args.fresh
    )
    if args.dry_run:
        return 0
    finished.save()
    html, markdown = write_report(finished)
    print(f"all done in {_clock(time.monotonic() - started)}\nreport: {html}\n        {markdown}")
    return 0


def _stamp(path: Path, digest: str, outputs: Iterable[Path]) -> dict[str, Any] | None:
    """The stamp of a step that is finished with this hash and whose outputs are still there."""
    try:
        entry = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return entry if entry.get("hash") == digest and all(output.exists() for output in outputs) else None


def _set_aside(folder: Path) -> None:
    """Give an old output folder another name, so that nothing in it is resumed or lost."""
    if folder.exists():
        old = folder.with_name(f"{folder.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(old)
        print(f"earlier results are now in {old}")


def _digest(*parts: str) -> str:
    """Hash of some strings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _short(path: Path) -> str:
    """A path relative to the repository where it lies below it, without following links (a venv's python is one)."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _device() -> str:
    """cuda where it can be used, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
