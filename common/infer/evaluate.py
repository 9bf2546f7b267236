"""`strlab eval`: what a checkpoint reads of every LMDB below some folders.

For each set and in total (weighted by samples and unweighted): word accuracy under the protocols of 36, 62 and 94
characters, 1-NED, mean confidence, and how many samples were counted, could not be read or were left out. Evaluation
is in fp32 unless `--amp` says otherwise. `--out` gets `eval.json` and `predictions.csv`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.lmdb import WordLmdb
from common.data.words import discover
from common.errors import UserError
from common.files import write_text
from common.infer import environment
from common.infer.read import add_checkpoint_arguments, open_from
from common.infer.recognizer import Prediction, Recognizer, read_card
from common.metrics.protocols import PROTOCOLS, Scores, totals

COLUMNS = (
    "set",
    "index",
    "label",
    "prediction",
    "confidence",
    "ned",
    "correct_36",
    "correct_62",
    "correct_94",
    "characters",
)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab eval`."""
    parser = subparsers.add_parser("eval", help="accuracy on LMDBs", description=__doc__)
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="every LMDB at or below these"
    )
    parser.add_argument(
        "--select", nargs="*", metavar="NAME", help="only LMDBs with one of these among their path's parts"
    )
    parser.add_argument(
        "--max-samples", type=int, default=0, metavar="N", help="at most the first N of each set (0: all)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write eval.json and predictions.csv there")
    parser.set_defaults(run=_run)


@dataclass
class SetResult:
    """One evaluated LMDB."""

    name: str
    path: Path
    samples: int
    scores: Scores
    rows: list[tuple] = field(default_factory=list)
    unreadable: int = 0  # image bytes that are no image
    missing: int = 0  # no image or label under the number, or a label that is not UTF-8


@dataclass
class Evaluation:
    """All sets of one run, with the time that reading took."""

    sets: list[SetResult]
    seconds: float

    @property
    def read(self) -> int:
        """Samples that went through the model."""
        return sum(len(one.rows) for one in self.sets)

    def as_dict(self) -> dict[str, Any]:
        """Figures as plain data, accuracies, 1-NED and confidence in %."""
        return {
            "sets": [_set_dict(one) for one in self.sets],
            "totals": {
                kind: _totals_dict(totals([one.scores for one in self.sets], kind == "weighted"))
                for kind in ("weighted", "unweighted")
            },
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.read / max(self.seconds, 1e-9), 2),
        }


def find_sets(folders: Sequence[Path], select: Sequence[str] | None = None) -> list[tuple[str, Path]]:
    """(name, folder) of every LMDB at or below the folders; the name is the path below its root.

    Raises `UserError` where there is none.
    """
    found: list[tuple[str, Path]] = []
    for folder in folders:
        for path in discover(folder, list(select) if select else None):
            name = path.relative_to(folder).as_posix() if path != folder else path.name
            if name in {other for other, _ in found}:
                name = f"{folder.name}/{name}"
            found.append((name, path))
    if not found:
        raise UserError(f"--data: no LMDB (folder with data.mdb) at or below {', '.join(map(str, folders))}")
    return found


def evaluate(
    recognizer: Recognizer, sets: Sequence[tuple[str, Path]], max_samples: int = 0, progress: bool = True
) -> Evaluation:
    """Read every set and score it. Samples that cannot be read are counted, and wrong for no protocol."""
    results, started = [], time.monotonic()
    for name, path in sets:
        results.append(evaluate_set(recognizer, name, path, max_samples, progress))
    return Evaluation(results, time.monotonic() - started)


def evaluate_set(
    recognizer: Recognizer, name: str, path: Path, max_samples: int = 0, progress: bool = True
) -> SetResult:
    """Read one LMDB."""
    from tqdm import tqdm

    words = WordLmdb(path)
    count = min(len(words), max_samples or len(words))
    result = SetResult(name, path, len(words), Scores())
    labels: list[tuple[int, str]] = []

    def images() -> Iterator[bytes]:
        for index in range(count):
            try:
                image, label = words.image_bytes(index), words.label(index)
            except (KeyError, UnicodeDecodeError):
                result.missing += 1
                continue
            labels.append((index, label))
            yield image

    bar = tqdm(total=count, desc=name, unit="img", disable=None if progress else True, leave=False)
    for number, prediction in enumerate(recognizer.stream(images())):
        index, label = labels[number]
        bar.update()
        if prediction.error:
            result.unreadable += 1
            continue
        result.rows.append(_row(name, index, label, prediction, result.scores))
    bar.close()
    words.close()
    return result


def _row(name: str, index: int, label: str, prediction: Prediction, scores: Scores) -> tuple:
    """Score one sample; its line of the table of predictions."""
    judged = scores.add(label, prediction.text, prediction.confidence)
    marks = ["" if judged.correct[p] is None else int(judged.correct[p]) for p in PROTOCOLS]
    characters = " ".join(f"{float(value):.4f}" for value in prediction.char_confidences)
    return (
        name,
        index,
        label,
        prediction.text,
        f"{float(prediction.confidence):.6f}",
        f"{judged.ned:.6f}",
        *marks,
        characters,
    )


def _set_dict(one: SetResult) -> dict[str, Any]:
    figures = _totals_dict(one.scores.summary())
    protocols = {
        p: {"n": one.scores.count[p], "correct": one.scores.right[p], "accuracy": figures[p]} for p in PROTOCOLS
    }
    return {
        "name": one.name,
        "path": str(one.path.absolute()),
        "samples": one.samples,
        "read": len(one.rows),
        "unreadable": one.unreadable,
        "missing": one.missing,
        "protocols": protocols,
        "ned": figures["ned"],
        "confidence": figures["confidence"],
    }


def csv_text(rows: Iterator[tuple] | Sequence[tuple]) -> str:
    """`predictions.csv`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return buffer.getvalue()


def table(evaluation: dict[str, Any]) -> str:
    """The console table: accuracies in %, with the number of counted samples of each protocol."""
    width = max(12, *(len(one["name"]) for one in evaluation["sets"])) + 2
    heads = "".join(f"{'acc ' + p:>9}{'(n)':>9}" for p in PROTOCOLS)
    lines = [f"{'set':<{width}}{'samples':>8}{heads}{'1-NED':>8}{'conf.':>8}"]
    for one in evaluation["sets"]:
        figures = "".join(f"{one['protocols'][p]['accuracy']:9.2f}{one['protocols'][p]['n']:9d}" for p in PROTOCOLS)
        skipped = one["unreadable"] + one["missing"]
        note = f"  {skipped} skipped" if skipped else ""
        lines.append(
            f"{one['name']:<{width}}{one['samples']:8d}{figures}{one['ned']:8.2f}{one['confidence']:8.2f}{note}"
        )
    for kind in ("weighted", "unweighted"):
        total = evaluation["totals"][kind]
        figures = "".join(f"{total[p]:9.2f}{'':9}" for p in PROTOCOLS)
        lines.append(f"{kind:<{width}}{total['n']:8d}{figures}{total['ned']:8.2f}{total['confidence']:8.2f}")
    return "\n".join(lines)


def _run(args: argparse.Namespace) -> int:
    sets = find_sets(args.data, args.select)
    recognizer = open_from(args)
    evaluation = evaluate(recognizer, sets, args.max_samples)
    result = {
        "checkpoint": str(args.checkpoint.absolute()),
        "model": args.model or read_card(args.checkpoint).get("model", ""),
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
        f"{result['images_per_second']:.1f} images a second; accuracies in %: 36 = letters and digits without case, "
        "62 = with case, 94 = with punctuation; n = samples whose label has characters of the protocol"
    )
    if args.out is not None:
        write_text(args.out / "predictions.csv", csv_text(row for one in evaluation.sets for row in one.rows))
        write_text(args.out / "eval.json", json.dumps(result, indent=1, ensure_ascii=False))
        print(f"written: {args.out / 'eval.json'} and predictions.csv")
    return 0
