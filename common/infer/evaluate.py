"""`strlab eval`: what a checkpoint reads of every LMDB below some folders.

For each set and in total (weighted by samples and unweighted): word accuracy under the protocols of 36, 62 and 94
characters and of labels exactly as stored, 1-NED, mean confidence, and how many samples were counted, could not be
read or were left out. Evaluation is in fp32 unless `--amp` says otherwise. `--out` gets `eval.json`, `predictions.csv`
and `bad_samples.csv`, which lists the samples that could not be read.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.bad import FILE_NAME, BadSample
from common.data.sources import open_words
from common.data.words import discover
from common.errors import UserError
from common.files import write_text
from common.infer import environment
from common.infer.read import add_checkpoint_arguments, open_from
from common.infer.recognizer import Prediction, Recognizer
from common.metrics.accuracy import Row, Scores, one_minus_ned
from common.metrics.protocols import EXACT, PROTOCOL_36, PROTOCOLS

RULES = (*PROTOCOLS, EXACT)
NAMES = tuple(rule.name for rule in RULES)
COLUMNS = ("set", "index", "label", "prediction", "confidence", "ned", *(f"correct_{n}" for n in NAMES), "characters")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab eval`."""
    parser = subparsers.add_parser("eval", help="accuracy on LMDBs", description=__doc__)
    add_checkpoint_arguments(parser)
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

    def as_dict(self) -> dict[str, Any]:
        """Figures as plain data; accuracies, 1-NED, CER and confidence in %, None where a set has no counted word."""
        sets = []
        for row in self.scores.rows():
            entry = _row_dict(row)
            entry["path"], entry["samples"] = str(self.folders[row.name].absolute()), self.samples[row.name]
            entry["missing"] = self.missing[row.name]
            sets.append(entry)
        return {
            "sets": sets,
            "totals": {
                "weighted": _row_dict(self.scores.weighted()),
                "unweighted": _row_dict(self.scores.unweighted()),
            },
            "seconds": round(self.seconds, 3),
            "images_per_second": round(len(self.lines) / max(self.seconds, 1e-9), 2),
        }


def find_sets(folders: Sequence[Path], select: Sequence[str] | None = None) -> dict[str, Path]:
    """Folder of every LMDB at or below the folders, by its name: the path below its root, with more of the path before
    it where that is taken. A folder that is given twice counts once.

    Raises `UserError` where there is none.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for folder in folders:
        for path in discover(folder, list(select) if select else None):
            place = os.path.realpath(path)
            if place not in seen:
                seen.add(place)
                found[_free_name(path, max(1, len(path.relative_to(folder).parts)), found)] = path
    return found


def _free_name(path: Path, count: int, taken: Iterable[str]) -> str:
    """The last `count` parts of a path, or as many more as make it a name that is not taken."""
    parts = Path(os.path.normpath(path.absolute())).parts
    names = ("/".join(parts[-n:]) for n in range(count, len(parts) + 1))
    return next(name for name in names if name not in taken)


def evaluate(recognizer: Recognizer, sets: dict[str, Path], max_samples: int = 0, progress: bool = True) -> Evaluation:
    """Read every set and score it. What cannot be read is counted and is in no figure.

    Raises `UserError` where a set has no readable sample at all.
    """
    evaluation, started = Evaluation(), time.monotonic()
    for name, path in sets.items():
        _evaluate_set(evaluation, recognizer, name, path, max_samples, progress)
    evaluation.seconds = time.monotonic() - started
    return evaluation


def _evaluate_set(
    evaluation: Evaluation, recognizer: Recognizer, name: str, path: Path, max_samples: int, progress: bool
) -> None:
    """Read one LMDB and add it to the evaluation."""
    from tqdm import tqdm

    words = open_words(path)
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
    with tqdm(total=count, desc=name, unit="img", disable=None if progress else True, leave=False) as bar:
        for number, prediction in enumerate(recognizer.stream(images())):
            bar.update()
            index, label = labels[number]
            if prediction.error:
                unreadable += 1
                evaluation.bad.append(BadSample(str(path), index + 1, prediction.error))
                continue
            done += 1
            evaluation.scores.add(name, [prediction.text], [label], [float(prediction.confidence)])
            evaluation.lines.append(_line(name, index, label, prediction))
    evaluation.scores.add_bad(name, unreadable)
    words.close()
    if count and not done:
        raise UserError(f"{path}: not one of its {count} samples can be read; look with `strlab doctor {path}`")


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


def _row_dict(row: Row) -> dict[str, Any]:
    """One line of the accuracy table as plain data."""

    def rounded(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 4)

    protocols = {
        name: {
            "n": row.counted[name],
            "filtered": row.filtered[name],
            "accuracy": rounded(row.accuracy[name]),
            "ned": rounded(row.one_minus_ned[name]),
            "cer": rounded(row.cer[name]),
        }
        for name in NAMES
    }
    return {
        "name": row.name,
        "read": row.samples,
        "unreadable": row.bad,
        "confidence": rounded(row.confidence),
        "protocols": protocols,
    }


def csv_text(columns: Sequence[str], rows: Iterable[tuple]) -> str:
    """A table with its header as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def table(evaluation: dict[str, Any]) -> str:
    """The console table: accuracies in %, with the number of counted samples of each protocol."""
    width = max(12, *(len(one["name"]) for one in evaluation["sets"])) + 2
    heads = "".join(f"{'acc ' + name:>10}{'(n)':>8}" for name in NAMES)
    lines = [f"{'set':<{width}}{'read':>8}{heads}{'1-NED':>8}{'conf.':>8}"]
    for one in [*evaluation["sets"], *evaluation["totals"].values()]:
        figures = "".join(
            f"{_figure(one['protocols'][name]['accuracy'], 10)}{one['protocols'][name]['n']:8d}" for name in NAMES
        )
        skipped = one["unreadable"] + one.get("missing", 0)
        note = f"  {skipped} skipped" if skipped else ""
        ned = _figure(one["protocols"]["36"]["ned"], 8)
        lines.append(f"{one['name']:<{width}}{one['read']:8d}{figures}{ned}{_figure(one['confidence'], 8)}{note}")
    return "\n".join(lines)


def _figure(value: float | None, width: int) -> str:
    """A number with two decimals, a dash for None."""
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"


def _run(args: argparse.Namespace) -> int:
    sets = find_sets(args.data, args.select)
    recognizer = open_from(args, published=True)
    evaluation = evaluate(recognizer, sets, args.max_samples)
    result = {
        "checkpoint": str(recognizer.source.absolute()),
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
    print(table(result))
    print(
        f"model {result['model']}, {result['precision']} on {result['device']}, "
        f"{result['images_per_second']:.1f} images a second. Accuracies in %: 36 = letters and digits without case, "
        "62 = with case, 94 = with punctuation, exact = as stored; n = samples whose label has characters of the "
        "protocol; 1-NED under 36"
    )
    if args.out is not None:
        write_text(args.out / "predictions.csv", csv_text(COLUMNS, evaluation.lines))
        write_text(args.out / FILE_NAME, csv_text(BadSample._fields, sorted(evaluation.bad)))
        write_text(args.out / "eval.json", json.dumps(result, indent=1, ensure_ascii=False))
        print(f"written: {args.out / 'eval.json'} with predictions.csv and {FILE_NAME}")
    return 0
