"""Run the steps of a recipe in order and skip the finished ones; `recipe.py` next to this file describes the form."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.data.lmdb import lmdb_folders
from common.errors import UserError
from common.files import read_json, write_text
from common.report.finished import Done, Finished
from common.reproduce import recipe as recipes
from common.reproduce import release
from common.reproduce.recipe import Recipe, Scale
from common.reproduce.run_command import StepFailed, run_command

SOURCE = Path(__file__).resolve().parents[2]  # where `projects/` is: the repository, or an installed package's folder
ROOT = Path(os.environ.get("STRLAB_HOME") or Path.cwd()).expanduser().absolute()  # outputs and data go below it


class Runner:
    """Runs the steps of one scale in order, with a stamp file for each finished one.

    A stamp holds a hash of the command, of the inputs and of the stamp before it, so a step is run again when anything
    before it was. Stamps are written atomically after the command ended with status 0.
    """

    def __init__(
        self, recipe: Recipe, scale_name: str, scale: Scale, out: Path, data: Path | None, pretrained: str = ""
    ) -> None:
        self.recipe, self.scale_name, self.scale, self.out = recipe, scale_name, scale, out
        self.pretrained = pretrained
        if pretrained and not any("{pretrained}" in step.run for step in scale.steps):
            raise UserError(f"--pretrained: the scale {scale_name} of {recipe.name} has no use for start weights")
        self.own_data = data is not None
        corpus = scale.corpus.replace("{images}", str(scale.images))
        self.data = data or ROOT / "data" / f"synth-{_digest(corpus)[:8]}"
        if data is None and not scale.corpus:
            raise UserError(
                f"--data: the scale {scale_name} of {recipe.name} needs a data folder (training/, evaluation/)"
            )
        if data is not None and not data.is_dir():
            raise UserError(f"--data: {data} is no folder; give one with training/ and evaluation/ below it")

    def values(self) -> dict[str, str]:
        """The placeholders' values; paths below the working folder are shown relative to it."""
        return recipes.Values({
            "data": _short(self.data),
            "out": _short(self.out),
            **programs(),
            "scale": self.scale_name,
            "device": default_device(),
            "pretrained": self.pretrained or "auto",
            **(release.values(self.scale.words, self.scale.images) if self.scale.words else {}),
        })  # fmt: skip

    def plan(self) -> list[tuple[str, list[str], tuple[Path, ...], Path]]:
        """(name, command, outputs, stamp file) of every step, the corpus first and the evaluation last."""
        values, stamps = self.values(), self.out / "steps"
        plan = []
        if not self.own_data:
            command = recipes.command_line(self.scale.corpus, values)
            plan.append(("corpus", command, (self.data,), self.data.with_name(self.data.name + ".done.json")))
        for step in self.scale.each_step():
            outputs = tuple(ROOT / recipes.fill(path, values) for path in step.outputs)
            command = [script(word) for word in recipes.command_line(step.run, values, self.scale.seeds)]
            plan.append((step.name, command, outputs, stamps / f"{step.name}.json"))
        if self.scale.evaluate:
            text = "{strlab} eval --checkpoint " + self.scale.evaluate + " --data " + self.scale.evaluate_data
            text += " --out {out}/eval " + (f"--model {self.scale.model} " if self.scale.model else "")
            command = recipes.command_line(text + self.scale.evaluate_flags, values)
            plan.append(("evaluate", command, (self.out / "eval" / "eval.json",), stamps / "evaluate.json"))
        return plan

    def run(self, dry_run: bool = False, fresh: bool = False) -> Finished:
        """Run what is not finished. Raises `UserError` where a step fails, saying how to continue."""
        if fresh and not dry_run:
            _set_aside(self.out)
        if not dry_run:
            self.finished(()).announce()
        plan, done, previous = self.plan(), [], self._data_print()
        for number, (name, command, outputs, stamp) in enumerate(plan, 1):
            line = " ".join(shlex.quote(word) for word in command)
            print(f"[{number}/{len(plan)}] {name}\n    {line}", flush=True)
            digest = _digest(line, previous)
            old = None if fresh and dry_run else _stamp(stamp, digest, outputs)
            if old is not None:
                print(f"    finished before, took {clock(old['seconds'])}")
            elif not dry_run:
                old = self._run_step(name, command, stamp, digest)
            done.append(Done(name, tuple(command), old["seconds"] if old else 0.0))
            previous = old["id"] if old else digest
        return self.finished(tuple(done))

    def finished(self, steps: tuple[Done, ...]) -> Finished:
        """What the report is made from."""
        recipe, scale = self.recipe, self.scale
        return Finished(
            project=recipe.name,
            title=recipe.title,
            scale=self.scale_name,
            note=scale.note,
            model=scale.model,
            data=self.data,
            own_data=self.own_data,
            out=self.out,
            run_dir=Path(recipes.fill(scale.run, {"data": str(self.data), "out": str(self.out)})),
            checkpoint=ROOT / recipes.fill(scale.evaluate, self.values()) if scale.evaluate else None,
            steps=steps,
            published=recipe.published,
            published_rows=recipe.published_rows,
            corpus="" if self.own_data else recipes.fill(" ".join(scale.corpus.split()[3:]), self.values()),
            images=scale.images,
        )

    def _run_step(self, name: str, command: list[str], stamp: Path, digest: str) -> dict[str, Any]:
        """Run one command and stamp it."""
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        try:
            seconds = run_command(command, ROOT, self.out / "logs" / f"{name}.log", self.scale.threads)
        except StepFailed as failure:
            again = f"strlab reproduce {self.recipe.name} --scale {self.scale_name}"
            again = f"strlab sanity {self.recipe.name}" if self.scale_name == "sanity" else again
            again += f" --data {shlex.quote(str(self.data))}" if self.own_data else ""
            again += release.flags(self.scale.words, self.scale.images)
            again += f" --pretrained {shlex.quote(self.pretrained)}" if self.pretrained else ""
            again += f" --out {shlex.quote(str(self.out))}" if self.out != self.usual_out() else ""
            raise UserError(f"step {name}: {failure}; finished steps are kept: continue with `{again}`") from None
        entry = {"hash": digest, "id": uuid.uuid4().hex, "seconds": round(seconds, 1), "ended": time.time()}
        write_text(stamp, json.dumps(entry))
        print(f"    done in {clock(seconds)}", flush=True)
        return entry

    def usual_out(self) -> Path:
        """Where the results go when no folder is named."""
        return usual_out(self.recipe.name, self.scale_name, self.scale)

    def _data_print(self) -> str:
        """What the first step depends on: the user's files by size and time; nothing for a corpus that is rendered."""
        if not self.own_data:
            return ""
        files = [folder / "data.mdb" for folder in lmdb_folders(self.data)]
        return _digest(*(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files))


def programs() -> dict[str, str]:
    """The placeholders {python} and {strlab}: this interpreter, and the console command next to it."""
    python, strlab = _short(Path(sys.executable)), Path(sys.executable).with_name("strlab")
    return {"python": python, "strlab": _short(strlab) if strlab.exists() else f"{python}\n-P\n-m\ncommon.cli"}


def usual_out(project: str, scale_name: str, scale: Scale) -> Path:
    """`outputs/NAME/SCALE`, with the corpus and the number of images where they are not the usual ones of `release`."""
    return ROOT / "outputs" / project / f"{scale_name}{release.folder(scale.words, scale.images)}"


def _stamp(path: Path, digest: str, outputs: Iterable[Path]) -> dict[str, Any] | None:
    """The stamp of a step that is finished with this hash and whose outputs are still there."""
    try:
        entry = read_json(path, dict)
    except UserError:
        return None
    return entry if entry.get("hash") == digest and all(output.exists() for output in outputs) else None


def _set_aside(folder: Path) -> None:
    """Give an old output folder another name, so that nothing in it is resumed or lost."""
    if folder.exists():
        old = folder.with_name(f"{folder.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(old)
        print(f"earlier results are now in {old}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def script(word: str) -> str:
    """A word of a command; a script of a project by its full path where the working folder is not the repository."""
    return str(SOURCE / word) if word.startswith("projects/") and ROOT != SOURCE else word


def _short(path: Path) -> str:
    """A path relative to the working folder where it lies below it; links (a venv's python is one) are not followed."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def default_device() -> str:
    """cuda where it can be used, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
