"""`strlab eval`: what a reader makes of every word LMDB below some folders.

For each set and in total (weighted by samples and unweighted): word accuracy under the protocols of 36, 62 and 94
characters and of labels exactly as stored, with the 95 % Wilson interval and the number of words; 1-NED, mean
confidence and its calibration; and how many samples could not be read. A protocol that the reader cannot write (case,
punctuation) shows a dash. Rendered stand-ins are called `synth-NAME`. Evaluation is in fp32 unless `--amp` says
otherwise. `--out` gets `eval.json`, `predictions.csv` and `bad_samples.csv`, which lists the samples that could not be
read.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import punctuation
from typing import Any

import cv2
from tqdm import tqdm

from common.console import NOTES, TOTALS, is_terminal, live, show, styled
from common.data.bad import FILE_NAME, BadSample
from common.data.decode import decode_rgb
from common.data.parts import add_shard_argument, find_shard
from common.data.sources import STAND_IN, open_words
from common.data.words import discover
from common.errors import UserError
from common.files import write_text
from common.infer import environment
from common.infer.peers import PEERS, open_peer
from common.infer.published import paper_row, side_by_side
from common.infer.read import add_checkpoint_arguments, open_from
from common.infer.recognizer import Prediction, Recognizer
from common.infer.shared_reading import StoredReader, folder_of, read_share
from common.metrics.accuracy import Row, Scores, one_minus_ned
from common.metrics.calibration import Traits, calibration, slices, traits_of
from common.metrics.intervals import wilson
from common.metrics.protocols import EXACT, PROTOCOL_36, PROTOCOLS
from common.train.session import check_writable

EXPLAIN = (
    "Accuracies in %. 36: letters and digits without case, 62: with case, 94: with\n"
    "punctuation, exact: as stored. Words count where the label has characters of the\n"
    "protocol. A dash: the reader cannot write it. 1-NED and calibration under 36."
)
RULES = (*PROTOCOLS, EXACT)
NAMES = tuple(rule.name for rule in RULES)
COLUMNS = ("set", "index", "label", "prediction", "confidence", "ned", *(f"correct_{n}" for n in NAMES), "characters")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("eval", help="accuracy on LMDBs", description=__doc__)
    add_checkpoint_arguments(parser)
    parser.add_argument("--reader", choices=PEERS, help="somebody else's reader, where it is installed")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="every word set at or below these: LMDB, folder with labels.txt or .csv, .tar shards, parquet",
    )
    parser.add_argument(
        "--select", nargs="*", metavar="NAME", help="only LMDBs with one of these among their path's parts"
    )
    parser.add_argument(
        "--max-samples", type=int, default=0, metavar="N", help="at most the first N of each set (0: all)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write eval.json, predictions.csv and bad_samples.csv there"
    )
    parser.add_argument(
        "--slices", action="store_true", help="also by length, case, digits, shape, blur and font of the words"
    )
    parser.add_argument(
        "--paper", action="append", default=[], metavar="NAME", help="print a published row for the same subsets"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files in --out that this command did not write")
    add_shard_argument(parser)
    parser.set_defaults(run=_run)


@dataclass
class Evaluation:
    """All sets of one run: the sums, one line of `predictions.csv` for each word and of `bad_samples.csv` for each
    sample that could not be read, and the time."""

    scores: Scores = field(default_factory=lambda: Scores(RULES))
    lines: list[tuple] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)  # no image or label under the number, or label not UTF-8
    seconds: float = 0.0
    charset: str = ""  # of the reader, for the protocols that it can write
    traits: list[Traits] = field(default_factory=list)  # one for each line, where they were asked for

    def as_dict(self) -> dict[str, Any]:
        """Figures as plain data; accuracies, 1-NED, CER and confidence in %, None where a set has no counted word."""
        sets = []
        for row in self.scores.rows():
            entry = self._row_dict(row)
            entry["path"], entry["samples"] = str(self.folders[row.name].absolute()), self.samples[row.name]
            entry["missing"] = self.missing[row.name]
            sets.append(entry)
        return {
            "sets": sets,
            "totals": {
                "weighted": self._row_dict(self.scores.weighted()),
                "unweighted": self._row_dict(self.scores.unweighted(), intervals=False),
            },
            **self._calibration(),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(len(self.lines) / max(self.seconds, 1e-9), 2),
        }

    def _row_dict(self, row: Row, intervals: bool = True) -> dict[str, Any]:
        """One line of the accuracy table as plain data."""

        def rounded(value: float) -> float | None:
            return None if math.isnan(value) else round(value, 4)

        protocols = {}
        for name in NAMES:
            accuracy, count, ends = row.accuracy[name], row.counted[name], (None, None)
            if not writes(self.charset, name):
                accuracy = math.nan
            elif intervals and count:
                ends = tuple(round(100 * end, 4) for end in wilson(round(accuracy / 100 * count), count))
            protocols[name] = {
                "n": count,
                "filtered": row.filtered[name],
                "accuracy": rounded(accuracy),
                "low": ends[0],
                "high": ends[1],
                "ned": rounded(row.one_minus_ned[name]),
                "cer": rounded(row.cer[name]),
            }
        return {
            "name": row.name,
            "read": row.samples,
            "unreadable": row.bad,
            "confidence": rounded(row.confidence),
            "protocols": protocols,
        }

    def _calibration(self) -> dict[str, Any]:
        """Calibration, and slices where traits were collected, under the 36-character protocol."""
        first = COLUMNS.index("correct_36")
        counted = [i for i, line in enumerate(self.lines) if line[first] != ""]
        correct = [bool(self.lines[i][first]) for i in counted]
        found = {"calibration": calibration([float(self.lines[i][4]) for i in counted], correct)}
        if self.traits:
            found["slices"] = slices([self.traits[i] for i in counted], correct)
        return found


def writes(charset: str, protocol: str) -> bool:
    """Whether a reader of these characters can write what a protocol compares: 62 needs both cases, 94 also marks. An
    unknown charset can."""
    letters = {c for c in charset if c.isascii() and c.isalpha()}
    if not letters or protocol in (PROTOCOL_36.name, EXACT.name):
        return True
    both = any(c.islower() for c in letters) and any(c.isupper() for c in letters)
    return both and (protocol == "62" or any(c in punctuation for c in charset))


def is_stand_in(folder: Path) -> bool:
    """Whether a set belongs to a corpus that `strlab data synth` rendered in place of a public set."""
    for parent in list(folder.absolute().parents)[:3]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return "renderer" in json.loads((parent / "corpus.json").read_text("utf-8"))
    return False


def find_sets(folders: Sequence[Path], select: Sequence[str] | None = None) -> dict[str, Path]:
    """Folder of every LMDB at or below the folders, by its name: the path below its root, with more of the path before
    it where that is taken, and `synth-` before the last part of a rendered stand-in. A folder that is given twice
    counts once.

    Raises `UserError` where there is none.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for folder in folders:
        for path in discover(folder, list(select) if select else None):
            place = os.path.realpath(path)
            if place not in seen:
                seen.add(place)
                name = _free_name(path, max(1, len(path.relative_to(folder).parts)), found)
                if is_stand_in(path):
                    head, slash, tail = name.rpartition("/")
                    name = f"{head}{slash}{STAND_IN}{tail.removeprefix(STAND_IN)}"  # older corpora lack the prefix
                found[name] = path
    return found


def _free_name(path: Path, count: int, taken: Iterable[str]) -> str:
    """The last `count` parts of a path, or as many more as make it a name that is not taken."""
    parts = Path(os.path.normpath(path.absolute())).parts
    names = ("/".join(parts[-n:]) for n in range(count, len(parts) + 1))
    return next(name for name in names if name not in taken)


def evaluate(
    recognizer: Recognizer, sets: dict[str, Path], max_samples: int = 0, progress: bool = True, traits: bool = False
) -> Evaluation:
    """Read every set and score it. What cannot be read is counted and is in no figure. With `traits` the properties by
    which accuracy can be sliced are collected, which decodes every crop once more.

    Raises `UserError` where a set has no readable sample at all.
    """
    evaluation, started = Evaluation(charset=recognizer.charset), time.monotonic()
    shown = {"sets": "", "read": ""}  # on a terminal: the table so far, and how far the present set is

    def draw() -> Any:
        return styled(f"{shown['sets']}{shown['read']}", header=bool(shown["sets"]))

    with live(draw) if progress else contextlib.nullcontext():
        for name, path in sets.items():
            _evaluate_set(evaluation, recognizer, name, path, max_samples, progress, traits, shown)
            if progress and is_terminal():
                shown["sets"] = table(evaluation.as_dict()) + "\n"
    evaluation.seconds = time.monotonic() - started
    return evaluation


def _evaluate_set(
    evaluation: Evaluation,
    recognizer: Recognizer,
    name: str,
    path: Path,
    max_samples: int,
    progress: bool,
    traits: bool,
    shown: dict[str, str],
) -> None:
    """Read one LMDB and add it to the evaluation."""
    words = open_words(path)
    if not len(words):
        raise UserError(f"{path}: the set is empty; exclude it with --select, or look with `strlab doctor {path}`")
    evaluation.folders[name], evaluation.samples[name], evaluation.missing[name] = path, len(words), 0
    count = min(len(words), max_samples or len(words))
    labels: list[tuple[int, str]] = []

    def images() -> Iterator[bytes]:
        for index in range(count):
            try:
                image, label = words.image_bytes(index), words.label(index)
            except (KeyError, UnicodeDecodeError) as error:
                reason = error.args[0] if isinstance(error, KeyError) else "label not UTF-8"
                evaluation.missing[name] += 1
                evaluation.bad.append(BadSample(str(path), index + 1, reason))
                continue
            labels.append((index, label))
            yield image

    done, unreadable = 0, 0
    quiet = True if not progress or is_terminal() else None  # the live table shows it there
    with tqdm(total=count, desc=name, unit="img", disable=quiet, leave=False) as bar:
        for number, prediction in enumerate(recognizer.stream(images())):
            bar.update()
            shown["read"] = f"{name}: {number + 1} of {count} words read"
            index, label = labels[number]
            if prediction.error:
                unreadable += 1
                evaluation.bad.append(BadSample(str(path), index + 1, prediction.error))
                continue
            done += 1
            evaluation.scores.add(name, [prediction.text], [label], [float(prediction.confidence)])
            evaluation.lines.append(_line(name, index, label, prediction))
            if traits:
                evaluation.traits.append(_traits(words, index, label))
    evaluation.scores.add_bad(name, unreadable)
    words.close()
    if not done:
        raise UserError(f"{path}: not one of its {count} samples can be read; look with `strlab doctor {path}`")


def _traits(words: Any, index: int, label: str) -> Traits:
    """The traits of one stored word."""
    image = decode_rgb(words.image_bytes(index))
    sharpness = float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())
    font = ""
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        font = str(json.loads(words.value("meta", index)).get("font") or "")
    return traits_of(label, (image.shape[1], image.shape[0]), sharpness, font)


def _line(name: str, index: int, label: str, prediction: Prediction) -> tuple:
    """One line of the table of predictions; a protocol under which the label is empty has no mark."""
    marks = []
    for protocol in RULES:
        truth = protocol.normalise(label)
        marks.append(int(truth == protocol.normalise(prediction.text)) if truth else "")
    ned = one_minus_ned(PROTOCOL_36.normalise(prediction.text), PROTOCOL_36.normalise(label))
    characters = " ".join(f"{float(value):.4f}" for value in prediction.char_confidences)
    return (
        name,
        index,
        label,
        prediction.text,
        f"{float(prediction.confidence):.6f}",
        f"{ned:.6f}",
        *marks,
        characters,
    )


def csv_text(columns: Sequence[str], rows: Iterable[tuple]) -> str:
    """A table with its header as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def table(evaluation: dict[str, Any]) -> str:
    """The console table, at most 80 columns for names of 13 characters: for each set one line with the accuracy under
    36 characters, its 95 % interval and its number of words, then the other protocols; counts of words that differ
    between protocols follow on a line of their own."""
    width = max(10, *(len(one["name"]) for one in evaluation["sets"])) + 1
    heads = "".join(f"{name:>7}" for name in NAMES[1:])
    lines = [f"{'set':<{width}}{'words':>6}{'36':>7} {'95 % interval':<14}{heads}{'1-NED':>7}{'conf.':>7}"]
    for one in [*evaluation["sets"], *evaluation["totals"].values()]:
        of, first = one["protocols"], one["protocols"]["36"]
        ends = f"{first['low']:.1f} to {first['high']:.1f}" if first["low"] is not None else "-"
        others = "".join(_figure(of[name]["accuracy"], 7) for name in NAMES[1:])
        lines.append(
            f"{one['name']:<{width}}{first['n']:6d}{_figure(first['accuracy'], 7)} {ends:<14}{others}"
            f"{_figure(first['ned'], 7)}{_figure(one['confidence'], 7)}"
        )
        skipped, counts = one["unreadable"] + one.get("missing", 0), {of[name]["n"] for name in NAMES}
        notes = [f"{skipped} skipped"] if skipped else []
        if len(counts) > 1:
            notes.append("words of each protocol: " + ", ".join(f"{name} {of[name]['n']}" for name in NAMES))
        if notes:
            lines.append("    " + "; ".join(notes))
    return "\n".join(lines)


def _figure(value: float | None, width: int) -> str:
    """A number with two decimals, a dash for None."""
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"


def _run(args: argparse.Namespace) -> int:
    if args.max_samples < 0:
        raise UserError(f"--max-samples: {args.max_samples} must be at least 0 (0: all)")
    rows = [paper_row(name) for name in args.paper]
    sets = find_sets(args.data, args.select)
    if args.out is not None:
        check_out(args.out, args.force)
        check_writable(args.out, "--out")
    if args.reader and (args.checkpoint or args.weights):
        raise UserError("--reader: give either somebody else's reader or --checkpoint and --weights, not both")
    recognizer = open_peer(args.reader) if args.reader else open_from(args, published=True)
    shard = find_shard(args.shard)
    if shard.count > 1:
        if args.out is None:
            raise UserError("--shard: the shares meet in a folder: give --out")
        missing = read_share(recognizer, sets, args.out, shard, args.max_samples)
        if missing:
            print(f"{args.out}: shard {shard} is done; {missing} parts are not read yet")
            return 0
        recognizer = StoredReader(recognizer, sets, args.out, args.max_samples)
    evaluation = evaluate(recognizer, sets, args.max_samples, traits=args.slices)
    result = {
        "checkpoint": str(recognizer.source.absolute()) if recognizer.source else "",
        "model": recognizer.name,
        "charset": recognizer.charset,
        "data": [str(path.absolute()) for path in args.data],
        "precision": "fp32" if args.amp == "no" else args.amp,
        "device": str(recognizer.reader.device),
        "batch_size": args.batch_size,
        "max_samples": args.max_samples,
        **evaluation.as_dict(),
        "environment": environment.describe(),
    }
    show(table(result), TOTALS, NOTES, header=True)
    print(f"model {result['model']}, {result['precision']} on {result['device']}, "
          f"{result['images_per_second']:.1f} images a second")  # fmt: skip
    sure = result["calibration"]
    at = ", ".join(f"{share} %: {value:.2f}" for share, value in sure["accuracy_at"].items())
    print(f"calibration error {sure['ece']:.2f} %; accuracy on the surest words\n  {at}")
    print(EXPLAIN)
    if result.get("slices"):
        print(f"  {'slice':<44}{'words':>6}{'36':>7} 95 % interval")
    for one in result.get("slices", ()):
        print(f"  {one['by']:<8}{one['value']:<36}{one['words']:6d}{one['accuracy']:7.2f} "
              f"{one['low']:.1f} to {one['high']:.1f}")  # fmt: skip
    for row in rows:
        print("\n".join(side_by_side(row, result["sets"])))
    if args.out is not None:
        write_text(args.out / "predictions.csv", csv_text(COLUMNS, evaluation.lines))
        write_text(args.out / FILE_NAME, csv_text(BadSample._fields, sorted(evaluation.bad)))
        write_text(args.out / "eval.json", json.dumps(result, indent=1, ensure_ascii=False))
        print(f"written: {args.out / 'eval.json'} with predictions.csv and {FILE_NAME}")
        shutil.rmtree(folder_of(args.out), ignore_errors=True)
    return 0


def check_out(folder: Path, force: bool) -> None:
    """Refuse a folder in which one of the files has our name but was not written by `strlab eval`."""
    try:
        ours = "totals" in json.loads((folder / "eval.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    foreign = [name for name in ("eval.json", "predictions.csv", FILE_NAME) if (folder / name).exists()]
    if foreign and not ours and not force:
        raise UserError(
            f"--out: {folder / foreign[0]} was not written by `strlab eval`; give another folder or --force"
        )
