"""`strlab curve`: how many labelled words does a reader need, and what do rendered words or pre-training save?

From the words below `--data` it takes nested subsets of `--words` words, trains on each from every `--start`, and reads
the validation words, which are in no subset: the tenth of every set whose label's hash is 0. The starts are

    scratch        the default reader from random weights
    rendered       the default reader from the shipped weights, which were trained on rendered words (or rendered=FILE);
                   four images of ten stay rendered ones
    dig=FILE       DiG's recogniser from a pre-trained encoder (ssm=FILE for SSM's); dig or ssm alone: from scratch

Every point sees the same number of images, `--images`, so few words are shown more often. What is measured are the
weights at the end, so nothing is selected on the words that are measured. Every finished point is kept and the same
command resumes. `--out` gets `curve.svg`, `curve.csv` and `curve.md`, written again after every point.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.lmdb import LmdbWriter
from common.data.words import WordDataset, discover
from common.errors import UserError
from common.files import write_text
from common.infer import shipped
from common.infer.evaluate import csv_text, evaluate, find_sets
from common.infer.recognizer import open_recognizer
from common.metrics.intervals import wilson
from common.metrics.protocols import PROTOCOL_36
from common.report.charts import Curve, line_chart
from common.reproduce import recipe as recipes
from common.reproduce import runner
from common.reproduce.run_command import StepFailed, run_command

OWN = ("scratch", "rendered")
BATCH = 32  # of every start; DiG and SSM count their steps in epochs over the words
TRAIN = """{strlab} train --out {out} --images {images} --decay_images {images/2} --batch {batch} --warmup {images/320}
  --real {data} --validation {validation} --eval_every {images} --device {device} --seed {seed}"""
# from rendered words a part of the batch stays rendered, as in the training of compact-real: few words are soon known
START = {"scratch": " --lr 0.001 --real_share 1", "rendered": " --lr 0.0003 --real_share 0.6 --init {pretrained}"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "curve", help="how many labelled words are needed", description=__doc__,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="labelled word sets")
    parser.add_argument("--validation", type=Path, nargs="*", default=[], metavar="FOLDER",
                        help="further sets whose validation tenth is read, but which are not trained on")  # fmt: skip
    parser.add_argument(
        "--start", nargs="+", default=list(OWN), metavar="START", help="see above (default: %(default)s)"
    )
    parser.add_argument("--words", nargs="+", default=["100", "300", "1000", "3000", "all"], metavar="N",
                        help="sizes of the subsets (default: 100 300 1000 3000 all)")  # fmt: skip
    parser.add_argument("--images", type=int, default=200_000, help="images that every point sees (default 200,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the subsets and the training (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--amp", default="no", choices=["no", "bf16"], help="of scratch and rendered")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/curve"),
        metavar="FOLDER",
        help="where table and chart are written (default: outputs/curve)",
    )
    parser.set_defaults(run=_run)


@dataclass(frozen=True)
class Start:
    """One start: its name on the chart, the command of a point, the checkpoint it leaves, and the weights it begins
    from ("" for random ones)."""

    name: str
    command: str
    checkpoint: str
    weights: str = ""


def _run(args: argparse.Namespace) -> int:
    if args.images < 1280:
        raise UserError(f"--images {args.images}: at least 1280 are needed")
    starts = [find_start(text, args.amp) for text in args.start]
    out = args.out.absolute()
    pool, tenth = labelled_words(args.data, args.validation)
    sizes = subset_sizes(args.words, len(pool))
    prepare(out, pool, tenth, sizes, args)
    points: list[dict[str, Any]] = []
    for start in starts:
        if start.name == "rendered":
            points.append(_point(out, start, 0, args, Path(start.weights)))
        for size in sizes:
            points.append(_point(out, start, size, args))
            write_files(out, points, args.images)
    print(f"written: {out / 'curve.svg'} with curve.csv and curve.md")
    return 0


def find_start(text: str, amp: str) -> Start:
    """A start by its name, or NAME=FILE. Raises `UserError` for an unknown one or a file that is not there."""
    name, _, file = text.partition("=")
    if file and not Path(file).is_file():
        raise UserError(f"--start {text}: {file} does not exist")
    weights = str(Path(file).absolute()) if file else ""
    if name in OWN:
        if name == "scratch" and weights:
            raise UserError("--start scratch: begins from random weights; give rendered=FILE")
        weights = weights or (str(shipped.default().path) if name == "rendered" else "")
        return Start(name, f"{TRAIN} --amp {amp}{START[name]}", "{out}/best.pth", weights)
    table = recipes.curve(name) if name in recipes.projects() else None
    if table is None:
        known = [*OWN, *(project for project in recipes.projects() if recipes.curve(project))]
        raise UserError(f"--start {text}: not one of {', '.join(known)}, with =FILE for weights to start from")
    command = table["run"] + (" " + table["start"] if weights else "")
    return Start(name if weights else f"{name}, scratch", command, table["checkpoint"], weights)


def labelled_words(folders: Sequence[Path], further: Sequence[Path]) -> tuple[WordDataset, dict[str, list]]:
    """The words to train on, and the validation tenth by set as (picture, label); both as stored.

    Raises `UserError` where there is none.
    """
    return training_words(folders), validation_tenth(find_sets([*folders, *further]))


def training_words(folders: Sequence[str | Path], max_length: int = 25) -> WordDataset:
    """The words of the sets in these folders that are not in the validation tenth, of at most `max_length` characters.

    Raises `UserError` where there is none.
    """
    from common.reader.data import is_validation  # loads torch

    paths = [path for folder in folders for path in discover(folder)]
    return WordDataset(paths, max_length=max_length, keep=lambda label: "" if is_validation(label) else label)


def validation_tenth(sets: Mapping[str, Path], max_length: int | None = None) -> dict[str, list[tuple[bytes, str]]]:
    """(picture, label) as stored of the words in the validation tenth, by the names of the sets; of at most
    `max_length` characters. Raises `UserError` where there is none.
    """
    from common.reader.data import is_validation  # loads torch

    tenth = {}
    for name, path in sets.items():
        words = WordDataset([path], max_length=max_length)
        items = [i for i in range(len(words)) if is_validation(words.label(i))]
        items = [i for i in items if PROTOCOL_36.normalise(words.label(i))]
        if items:
            tenth[name] = [(stored(words, i), words.label(i)) for i in items]
    if not tenth:
        raise UserError(f"{', '.join(map(str, sets.values()))}: no word of the validation tenth")
    return tenth


def stored(words: WordDataset, index: int) -> bytes:
    """The picture of a word as its set holds it."""
    source, number = words.location(index)
    return source.image_bytes(number)


def subset_sizes(words: Sequence[str], most: int) -> list[int]:
    """The sizes in order. Raises `UserError` for one that is no number or above what there is."""
    sizes = set()
    for word in words:
        if word != "all" and not word.isdecimal():
            raise UserError(f"--words {word}: give numbers, or all")
        size = most if word == "all" else int(word)
        if not BATCH <= size <= most:
            raise UserError(f"--words {word}: from {BATCH} to {most}, the labelled words that are not for validation")
        sizes.add(size)
    return sorted(sizes)


def prepare(out: Path, pool: WordDataset, tenth: Mapping[str, list], sizes: Sequence[int], args) -> None:
    """Write the subsets and the validation words, or check that those of an earlier run are the same."""
    plan = {"words": pool.fingerprint, "validation": {name: len(items) for name, items in tenth.items()},
            "images": args.images, "seed": args.seed, "amp": args.amp}  # fmt: skip
    note = out / "plan.json"
    if note.is_file() and json.loads(note.read_text("utf-8")) != plan:
        raise UserError(
            f"{note}: the points there were made from other words, --images, --seed or --amp; give another --out"
        )
    order = np.random.default_rng(args.seed).permutation(len(pool))
    for size in sizes:
        write_words(out / "training" / str(size), [(stored(pool, i), pool.label(i)) for i in order[:size]])
    for name, items in tenth.items():
        write_words(out / "validation" / name, items)
    write_text(note, json.dumps(plan))


def write_words(path: Path, items: Sequence[tuple[bytes, str]]) -> None:
    """An LMDB of (picture, label), if it is not there yet."""
    if not path.exists():
        with LmdbWriter(path) as writer:
            for image, label in items:
                writer.add(image, label)


def _point(out: Path, start: Start, size: int, args: argparse.Namespace, ready: Path | None = None) -> dict[str, Any]:
    """Train and measure one point, or take it from an earlier run. With `ready` that checkpoint is measured."""
    folder = out / start.name.replace(", ", "-") / str(size)
    done, title = folder / "point.json", f"{start.name}, {size or 'no'} labelled words"
    if done.is_file():
        point = json.loads(done.read_text("utf-8"))
        if point["weights"] != start.weights:
            before = point["weights"] or "random weights"
            raise UserError(f"{done}: that point began from {before}; give the same, or another --out")
        print(f"{title}: {point['accuracy']:.1f} % (measured before)", flush=True)
        return point
    print(title, flush=True)
    epochs = math.ceil(args.images / max(BATCH, size // BATCH * BATCH))
    values = recipes.Values(
        root=str(out), words=str(size), data=str(out / "training" / str(size)), out=str(folder), batch=str(BATCH),
        validation=str(out / "validation"), images=str(args.images), seed=str(args.seed), pretrained=start.weights,
        epochs=str(epochs), last=str(epochs - 1), samples=str(min(size, args.images)),
        steps=str(min(size, args.images) // BATCH),
        device=runner.default_device() if args.device == "auto" else args.device, **runner.programs(),
    )  # fmt: skip
    if ready is None:
        train([runner.script(word) for word in recipes.command_line(start.command, values)], folder, title)
    checkpoint = ready or Path(recipes.fill(start.checkpoint, values))
    recognizer = open_recognizer(checkpoint, device=values["device"], engine="torch")
    scores = evaluate(recognizer, find_sets([out / "validation"])).scores
    accuracy, count = scores.weighted().accuracy["36"], scores.weighted().counted["36"]
    low, high = wilson(round(accuracy / 100 * count), count)
    point = {
        "start": start.name, "words": size, "accuracy": round(accuracy, 2), "low": round(100 * low, 2),
        "high": round(100 * high, 2), "validation_words": count, "weights": start.weights,
        "sets": {row.name: round(row.accuracy["36"], 2) for row in scores.rows()},
    }  # fmt: skip
    write_text(done, json.dumps(point))
    print(f"    {accuracy:.1f} % ({point['low']:.1f} to {point['high']:.1f}) of {count} validation words", flush=True)
    return point


def train(command: Sequence[str], folder: Path, title: str) -> None:
    """Run the training of one point, with its output in `folder`/train.log. Raises `UserError` where it fails."""
    try:
        run_command(command, runner.ROOT, folder / "train.log")
    except StepFailed as failure:
        raise UserError(f"{title}: {failure}; finished points are kept") from None


def write_files(out: Path, points: Sequence[Mapping[str, Any]], images: int) -> None:
    """The table in two forms and the chart."""
    names, count = list(points[0]["sets"]), points[0]["validation_words"]
    header = ("start", "labelled words", "all words", "low", "high", "validation words", *names)
    rows = [
        (p["start"], p["words"], p["accuracy"], p["low"], p["high"], p["validation_words"], *p["sets"].values())
        for p in points
    ]
    write_text(out / "curve.csv", csv_text(header, rows))
    lines = [
        "Word accuracy in % under 36 characters with its 95 % Wilson interval; "
        f"every trained point saw {images:,} images.",
        "",
        f"| start | labelled words | all {count} words | {' | '.join(names)} |",
        "| --- " * (3 + len(names)) + "|",
    ]
    for p in points:
        figures = " | ".join(f"{figure:.1f}" for figure in p["sets"].values())
        of_all = f"{p['accuracy']:.1f} ({p['low']:.1f} to {p['high']:.1f})"
        lines.append(f"| {p['start']} | {p['words'] or 'none'} | {of_all} | {figures} |")
    write_text(out / "curve.md", "\n".join(lines) + "\n")
    curves = []
    for name in dict.fromkeys(p["start"] for p in points):
        own = [p for p in points if p["start"] == name and p["words"]]
        ends = [(p["low"], p["high"]) for p in own]
        curves.append(Curve(name, [p["words"] for p in own], [p["accuracy"] for p in own], ends))
        before = [p["accuracy"] for p in points if p["start"] == name and not p["words"]]
        if before and own:
            curves.append(Curve(f"{name}, none", [own[0]["words"], own[-1]["words"]], before * 2))
    chart = line_chart("Validation words read right (36 characters)", curves, "labelled words", "%", log_x=True)
    write_text(out / "curve.svg", chart)
