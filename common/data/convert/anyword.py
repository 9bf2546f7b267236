"""An AnyWord JSON file (data_root, data_list) -> a scene LMDB: `image-%09d` as the file is, `annotations-%09d` as JSON.

Kept are words with a polygon and a text that pass the filters; a picture without any is skipped. What was skipped is
counted, and listed in `error_image_log.txt`. A killed conversion resumes when the same command is given again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from common.data.convert.records import MALFORMED, Unusable, malformed, picture_below
from common.data.convert.samples import LOG_NAME, add_running_arguments
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.parts import SKIPPED, WHOLE_JOB, Joined, Shard, chunks, find_shard, parts_folder, run_job
from common.errors import UserError
from common.files import picture_folder, write_text

PART_SIZE = 1000  # pictures: the unit of resuming
COUNTS = "counts"  # in a part: JSON of how many words and pictures were used, or not used for which reason


@dataclass(frozen=True)
class Filters:
    """Which words and pictures are kept. `min_side`: shorter side of the polygon's rectangle in pixels."""

    keep_invalid: bool = False
    max_watermark: float = 1.0
    min_length: int = 1
    max_length: int = 25
    min_side: float = 0.0
    min_area: float = 0.0
    language: str | None = None

    def reason(self, word: dict) -> str | None:
        """Why a word is not kept, None for one that is."""
        polygon, text = word.get("polygon"), word.get("text")
        try:
            points = np.asarray(polygon if isinstance(polygon, list) else [], dtype=np.float64)
        except (ValueError, TypeError, OverflowError):  # ragged, or not numbers
            return "no polygon"
        if points.ndim != 2 or len(points) < 3 or points.shape[1] != 2 or not np.isfinite(points).all():
            return "no polygon"
        if not isinstance(text, str) or not text:
            return "no text"
        if not self.keep_invalid and word.get("valid") is False:
            return "marked invalid"
        if not self.min_length <= len(text) <= self.max_length:
            return f"text not of {self.min_length} to {self.max_length} characters"
        if self.language is not None and word.get("language", self.language) != self.language:
            return f"language not {self.language}"
        corners = points.astype(np.float32)
        if min(cv2.minAreaRect(corners)[1]) < self.min_side or cv2.contourArea(corners) < self.min_area:
            return "polygon too small"
        return None


def convert_anyword(
    source: str | Path,
    out: str | Path,
    filters: Filters | None = None,
    say: Callable[[str], None] = print,
    *,
    workers: int = 1,
    shard: Shard = WHOLE_JOB,
    images: Path | None = None,
) -> Counter:
    """Write the LMDB folder `out`, which must not exist; counts of pictures, words and reasons of what was skipped.

    `images` is the folder of the pictures, in place of the file's data_root. workers, shard, resuming: see
    `write_samples`; the counts are empty where other shards have work left. Raises `UserError` for a file of another
    form, an unwritable place, or when nothing could be used.
    """
    source, out, filters, counts = Path(source), Path(out), filters or Filters(), Counter()
    root, items = read_scene_file(source, images)
    plan = {"scenes": hashlib.sha256(source.read_bytes()).hexdigest(), "root": str(root), **asdict(filters)}

    def finish(folder: Path, joined: Joined) -> None:
        for part in sorted(parts_folder(folder).glob("[0-9]*/data.mdb")):
            counts.update(json.loads(WordLmdb(part.parent).value(COUNTS, 0)))
        if joined.skipped:
            write_text(folder / LOG_NAME, "".join(f"{number}\t{name}\t{why}\n" for number, name, why in joined.skipped))

    joined = run_job(
        out,
        chunks(items, PART_SIZE),
        partial(_write_part, source, root, filters),
        plan=plan,
        workers=workers,
        shard=shard,
        total=len(items),
        finish=finish,
        extras=("annotations",),
        advice=": check data_root and the filters",
        say=say,
    )
    if joined is None:
        return counts
    say(f"Created dataset with {counts['pictures']} pictures and {counts['words']} words")
    if joined.skipped:
        say(f"{len(joined.skipped)} pictures skipped, listed in {out / LOG_NAME}")
    left = "; ".join(f"{name} ({counts[name]})" for name in sorted(counts) if name not in ("pictures", "words"))
    if left:
        say(f"Not used: {left}")
    return counts


def _write_part(source: Path, root: Path, filters: Filters, folder: Path, work: tuple[int, list[dict]]) -> int:
    """Convert some pictures into the LMDB of a part, with the counts of what was not used."""
    first, items = work
    counts, skipped = Counter(), []
    with LmdbWriter(folder, map_size=16 << 20) as writer:
        for number, item in enumerate(items, first):
            before = Counter(counts)
            try:
                words = _kept(item, filters, counts)
                annotations = json.dumps(words, ensure_ascii=False).encode("utf-8")
                if words:
                    data = picture_below(root, str(item["img_name"]))
            except MALFORMED as error:
                kind, reason = "pictures with malformed annotations", malformed(error)
            except Unusable as error:
                kind, reason = "unreadable pictures", str(error)
            else:
                if words:
                    writer.add(data, None, annotations=annotations)
                    counts["words"] += len(words)
                    continue
                why = "; ".join(name for name in counts - before) or "no annotations"
                kind, reason = "pictures without a word", f"no word can be used: {why}"
            counts[kind] += 1
            skipped.append([number, f"{source}: picture {number}: {item.get('img_name')}", reason])
        counts["pictures"] = writer.count
        for place, row in enumerate(skipped):
            writer.note(SKIPPED, place, json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        writer.note(COUNTS, 0, json.dumps(counts).encode())
    return len(items)


def read_scene_file(source: Path, images: Path | None = None) -> tuple[Path, list[dict]]:
    """The picture folder (`images`, or see `picture_folder`) and data_list. Raises `UserError` for another form."""
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        root, items = Path(content["data_root"]), content["data_list"]
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}): give an AnyWord JSON file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: no AnyWord JSON ({type(error).__name__}: {error})") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{source}: data_list: a list of objects is needed")
    names = [str(item["img_name"]) for item in items[:20] if "img_name" in item]
    return images or picture_folder(source, root, names), items


def _kept(item: dict, filters: Filters, counts: Counter) -> list[dict]:
    """The usable words of one picture in the stored form, with whole coordinates."""
    if float(item.get("wm_score") or 0.0) > filters.max_watermark:
        counts["pictures with a watermark"] += 1
        return []
    words = []
    for word in item.get("annotations") or []:
        reason = filters.reason(word)
        if reason is not None:
            counts[f"words: {reason}"] += 1
            continue
        kept = {"polygon": [[int(x), int(y)] for x, y in word["polygon"]], "text": word["text"]}
        words.append(kept | ({"language": word["language"]} if "language" in word else {}))
    return words


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("anyword", help="an AnyWord JSON file into a scene LMDB", description=__doc__)
    parser.add_argument("json", type=Path, metavar="JSON", help="file with data_root and data_list")
    parser.add_argument("out", type=Path, metavar="OUT", help="the LMDB folder to make; must not exist")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="of the pictures, in place of data_root")
    parser.add_argument("--keep-invalid", action="store_true", help="keep words marked `valid: false`")
    parser.add_argument("--max-watermark", type=float, default=1.0, help="largest wm_score of a picture")
    parser.add_argument("--min-length", type=int, default=1, help="shortest text")
    parser.add_argument("--max-length", type=int, default=25, help="longest text")
    parser.add_argument("--min-side", type=float, default=0.0, help="pixels of the shorter side of the polygon")
    parser.add_argument("--min-area", type=float, default=0.0, help="pixels inside the polygon")
    parser.add_argument("--language", default=None, help="only words of this language, or of none")
    add_running_arguments(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    names = ("keep_invalid", "max_watermark", "min_length", "max_length", "min_side", "min_area", "language")
    filters = Filters(**{name: getattr(args, name) for name in names})
    how = {"workers": args.workers, "shard": find_shard(args.shard), "images": args.images}
    convert_anyword(args.json, args.out, filters, **how)
