#!/usr/bin/env python
r"""Make a word data set: scenes -> other words for their regions -> painting -> a reader keeps what it reads right.

    python projects/textssr/synthesize.py scenes/test.json OUT --reader best.pth \
        --match 36 --vae … --unet … --scheduler …

OUT gets `words/` (num-samples, image-%09d as PNG, label-%09d: all other projects train on it), `rejected/` (the
pictures that were not kept, %09d.png), `manifest.jsonl` (a line for each attempt: label, prediction, confidence, source
picture, polygon, seed, accepted or why not, and the number of its picture in words/ or rejected/),
`contact_sheet.png` (kept, rejected, and the originals) and `parts/`, from which an interrupted run resumes: the same
command again. What is made depends on the flags and the files that they name, not on the number of processes; another
command, or other files under the same names, needs a new folder.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch
from tqdm.auto import tqdm

from common.data.decode import decode_rgb
from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.parts import claimed, find_shard
from common.errors import UserError, command
from common.files import read_json, write_text
from common.infer.pictures import captioned
from common.infer.recognizer import Prediction
from common.metrics.protocols import PROTOCOLS
from projects.textssr.data import Regions
from projects.textssr.flags import SynthesisOptions, parse_synthesis
from projects.textssr.fonts import Coverage, default_font
from projects.textssr.judge import Read, check_reader, open_reader, readable_characters, reader_files
from projects.textssr.model.diffusion import to_pixels
from projects.textssr.opening import check_font, open_generator, open_regions
from projects.textssr.painting import Generator, region_of, sample_draws, save_png
from projects.textssr.scenes import text_of
from projects.textssr.word_choice import WIDER, WordList, anagrams

NOTE = "options.json"
PROTOCOL = {protocol.name: protocol for protocol in PROTOCOLS}
NOT_PART_OF_RESULT = ("out", "workers", "device", "threads", "shard")
FILES = ("data", "images", "words", "reader", "vae", "unet", "scheduler", "font")
"""Flags that name files: what is made depends on those too."""


@dataclass(frozen=True)
class Job:
    """One attempt: which word of the scenes, what to paint there, and the seed of its noise."""

    index: int
    text: str
    seed: int


def plan(options: SynthesisOptions, texts: Sequence[str], width: Callable[[str], float]) -> list[Job]:
    """All attempts, in order; the same flags and scenes give the same. Prints what --words lacks."""
    words = WordList(options.words, width) if options.words else None
    jobs, lacking, short = [], 0, 0
    for index, text in enumerate(texts[: options.limit]):
        rng = random.Random(f"{options.seed}/{index}")
        if words is None:
            made = anagrams(text, options.per_region, rng, include_original=options.keep_original)
        else:
            made = words.fitting(text, options.per_region, rng)
            lacking, short = lacking + options.per_region - len(made), short + (len(made) < options.per_region)
        jobs += [Job(index, word, rng.getrandbits(48)) for word in made]
    if lacking:
        print(
            f"--words: {lacking} of {lacking + len(jobs)} words are lacking: for {short} of "
            f"{len(texts[: options.limit])} regions {options.words} has fewer than {options.per_region} words that are "
            f"at most {WIDER:g} times wider or narrower"
        )
    return jobs


def settle_match(rule: str | None, characters: str | None, labels: Sequence[str]) -> str:
    """The rule of --match, chosen where it is not given; reports labels that the reader cannot give.

    Raises UserError where it can give none of them. `characters`: those of the reader, None where that is not known.
    """
    if rule is None:
        whole = characters is None or all(set(label) <= set(characters) for label in labels)
        rule = "exact" if whole else "36"
    if characters is None:
        return rule
    known = set(folded(characters, rule))
    lost = [label for label in labels if not set(folded(label, rule)) <= known]
    if lost:
        missing = "".join(sorted(set("".join(folded(label, rule) for label in lost)) - known))[:40]
        told = f"--match {rule}: the reader cannot give {missing!r}: {len(lost)} of {len(labels)} words need them"
        if len(lost) == len(labels):
            raise UserError(f"{told}; give --match 36 or another --reader")
        print(f"warning: {told}; they will be rejected", file=sys.stderr, flush=True)
    return rule


def folded(text: str, rule: str) -> str:
    """What of a text a rule of --match compares."""
    return text if rule == "exact" else PROTOCOL[rule].normalise(text)


class Worker:
    """Paints, reads and judges parts; one in each process."""

    def __init__(self, options: SynthesisOptions) -> None:
        torch.set_num_threads(options.threads)
        self.options = options
        self.regions: Regions = open_regions(options)
        self.regions.shared = None  # the crop's place follows from the word alone
        self.generator: Generator = open_generator(options)
        self.reader: Read | None = None
        if options.reader is not None:
            self.reader = open_reader(options.reader, options.reader_model, options.device)

    def make(self, number: int, jobs: Sequence[Job]) -> int:
        """Write part `number`; the JSON lines come last and mark it as finished. Returns how many were accepted."""
        folder, lines, rejected = self.options.out / "parts", [], 0
        refused = folder / f"{number:06d}.rejected"
        shutil.rmtree(refused, ignore_errors=True)
        with LmdbWriter(folder / f"{number:06d}", overwrite=True) as writer:
            for start in range(0, len(jobs), self.options.batch_size):
                for job, crop, entry in self._attempt(jobs[start : start + self.options.batch_size]):
                    if entry["accepted"]:
                        writer.add(cv2.imencode(".png", crop[..., ::-1])[1].tobytes(), job.text)
                        entry["number"] = writer.count
                    elif crop is not None and not self.options.no_rejected:
                        rejected += 1
                        refused.mkdir(exist_ok=True)
                        save_png(refused / f"{rejected:09d}.png", crop)
                        entry["number"] = rejected
                    lines.append(json.dumps(entry, ensure_ascii=False))
            accepted = writer.count
        write_text(folder / f"{number:06d}.jsonl", "".join(f"{line}\n" for line in lines))
        return accepted

    def _attempt(self, jobs: Sequence[Job]) -> list[tuple]:
        """(job, region crop or None, manifest entry) of each job."""
        usable, results = [], []
        for job in jobs:
            sample, _ = self.regions.with_source(job.index, job.text)
            if sample is None:
                reason = self.regions.rejected[job.index]
                results.append((job, None, self._origin(job) | {"accepted": False, "reason": reason}))
            else:
                usable.append((job, sample))
        if usable:
            draw = sample_draws([job.seed for job, *_ in usable])
            crops = self.generator.paint([sample for _, sample in usable], draw)
            cut = [region_of(crop, sample.mask) for crop, (_, sample) in zip(crops, usable)]
            readings = self.reader(cut) if self.reader else [None] * len(cut)
            for (job, _), crop, reading in zip(usable, cut, readings):
                results.append((job, crop, self._entry(job, reading)))
        return results

    def _origin(self, job: Job) -> dict:
        """What an attempt was made of."""
        annotation = self.regions.annotation(job.index)
        polygon = annotation.get("polygon") if isinstance(annotation, dict) else None
        entry = {"label": job.text, "region": job.index, "source": self.regions.place(job.index)[0]}
        return entry | {"polygon": polygon, "seed": job.seed}

    def _entry(self, job: Job, reading: Prediction | None) -> dict:
        entry = self._origin(job)
        if reading is None:
            return entry | {"accepted": True}
        entry |= {"prediction": reading.text, "confidence": round(float(reading.confidence), 4)}
        if self.options.no_filter or matches(reading.text, job.text, self.options.match):
            return entry | {"accepted": True}
        return entry | {"accepted": False, "reason": "not read as the label"}


def matches(prediction: str, label: str, rule: str) -> bool:
    """Whether a reading is right: exactly, or after the normalisation of the 36-, 62- or 94-character protocol."""
    return folded(prediction, rule) == folded(label, rule) != ""


_worker: Worker | UserError | None = None


def _start(options: SynthesisOptions) -> None:
    """Open a process's models. What the user has to fix is kept for the first task: a pool would lose it."""
    global _worker
    try:
        _worker = Worker(options)
    except UserError as error:
        _worker = error


def _ready() -> None:
    """Raise what `_start` could not open."""
    if isinstance(_worker, UserError):
        raise _worker


def _make(number: int, jobs: Sequence[Job]) -> int:
    _ready()
    return _worker.make(number, jobs)


def make_parts(options: SynthesisOptions, tasks: Sequence[tuple[int, list[Job]]], begin: Callable[[], None]) -> None:
    """Make the parts, here or in further processes; `begin` is called once models and data are open.

    Raises UserError for what cannot be opened, and for a process that was killed.
    """
    if not options.workers:
        worker = Worker(options)
        begin()
        for task in tqdm(tasks, desc="Parts"):
            worker.make(*task)
        return
    pool = ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"), _start, (options,))
    try:
        pool.submit(_ready).result()
        begin()
        futures = [pool.submit(_make, *task) for task in tasks]
        for future in tqdm(as_completed(futures), total=len(futures), desc="Parts"):
            future.result()
    except BrokenProcessPool:
        raise UserError(
            "--workers: a process was killed (out of memory?); finished parts are kept: give the same command with "
            "fewer --workers"
        ) from None
    finally:  # after an error or an interrupt the parts that wait are not begun
        pool.shutdown(cancel_futures=True)


def check(options: SynthesisOptions) -> dict:
    """The note of this command, for its folder. Refuses another command's folder."""
    values = {name: str(value) for name, value in vars(options).items() if name not in NOT_PART_OF_RESULT}
    note, path = {"flags": values, "files": fingerprints(options)}, options.out / NOTE
    old = read_json(path, dict, "give a new folder") if path.is_file() else note
    if old.get("flags") != values:
        raise UserError(f"{options.out}: begun with other flags (see {NOTE}); give a new folder")
    changed = [name for name, state in note["files"].items() if (old.get("files") or {}).get(name) != state]
    if changed:
        raise UserError(f"{options.out}: {', '.join(changed)}: changed since it was begun; give a new folder")
    return note


def begin(out: Path, note: dict) -> None:
    """Make the folder a run of this command: models and data could be opened."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    write_text(out / NOTE, json.dumps(note, indent=1))


def fingerprints(options: SynthesisOptions) -> dict[str, list[int]]:
    """[size, time of change in ns] of every file that the result depends on."""
    found = {}
    for name in FILES:
        value = getattr(options, name)
        if name == "reader":
            files = reader_files(value)
        else:
            path = Path(default_font() if name == "font" and value is None else value or "")
            files = [path] if path.is_file() else sorted(path.rglob("*")) if value and path.is_dir() else []
        for file in [file for file in files if file.is_file() and file.name != "lock.mdb"]:
            status = file.stat()
            found[str(file)] = [status.st_size, status.st_mtime_ns]
    return found


def is_made(out: Path, number: int) -> bool:
    return (out / "parts" / f"{number:06d}.jsonl").is_file()


def merge(out: Path, parts: int) -> tuple[int, int]:
    """Join the parts and number their pictures: (accepted, attempts)."""
    lines, rejected = [], 0
    refused = out / "rejected"
    shutil.rmtree(refused, ignore_errors=True)
    with LmdbWriter(out / "words", overwrite=True) as writer:
        for number in range(parts):
            place, before = out / "parts" / f"{number:06d}", (writer.count, rejected)
            for line in (out / "parts" / f"{number:06d}.jsonl").read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if "number" in entry:
                    entry["number"] += before[0] if entry["accepted"] else before[1]
                lines.append(json.dumps(entry, ensure_ascii=False))
            part = WordLmdb(place)
            for index in range(len(part)):
                writer.add(part.image_bytes(index), part.label(index))
            part.close()
            for path in sorted(place.with_suffix(".rejected").glob("*.png")):
                rejected += 1
                refused.mkdir(exist_ok=True)
                shutil.copyfile(path, refused / f"{rejected:09d}.png")
        accepted = writer.count
    write_text(out / "manifest.jsonl", "".join(f"{line}\n" for line in lines))
    return accepted, len(lines)


def contact_sheet(out: Path, regions: Regions, most: int = 24) -> np.ndarray:
    """The first kept and the first rejected words, each with its original region above: uint8 `[h, w, 3]`."""
    entries = [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]
    words, sheets = WordLmdb(out / "words"), []
    for kept in (True, False):
        cells = []
        for entry in [one for one in entries if one["accepted"] == kept and "number" in one][:most]:
            sample, _ = regions.with_source(entry["region"], entry["label"])
            if sample is None:
                continue
            real = to_pixels(sample.image).round().byte().permute(1, 2, 0).numpy()
            number = entry["number"]
            data = words.image_bytes(number - 1) if kept else (out / "rejected" / f"{number:09d}.png").read_bytes()
            reading = f" > {entry['prediction'] or '(nothing)'}" if "prediction" in entry else ""
            own = text_of(regions.annotation(entry["region"]))
            cells.append((region_of(real, sample.mask), f"original {own}"))
            cells.append((decode_rgb(data), f"{'kept' if kept else 'rejected'} {entry['label']}{reading}"))
        if cells:
            sheets.append(captioned(cells, columns=6, cell=(48, 260)))
    words.close()
    width = max((sheet.shape[1] for sheet in sheets), default=1)
    padded = [np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=255) for sheet in sheets]
    return np.concatenate(padded) if padded else np.full((1, 1, 3), 255, np.uint8)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Plan, paint what is left, join."""
    options = parse_synthesis(argv, __doc__)
    regions = open_regions(options)
    regions.shared = None  # as in the workers
    jobs = plan(options, regions.texts(), regions.maker.renderer.word_font.getlength)
    if not jobs:
        why = f"none of {options.words} fits a region" if options.words else "no word has anagrams; give --words"
        raise UserError(f"{options.data}: {why}, or give other scenes")
    if options.reader is not None:
        check_reader(options.reader)
        known = readable_characters(options.reader, options.reader_model)
        options = replace(options, match=settle_match(options.match, known, [job.text for job in jobs]))
    note = check(options)
    check_font(Coverage(regions.maker.renderer.path, (job.text for job in jobs)), options.data)
    size = options.part_size
    tasks = [(number, jobs[start : start + size]) for number, start in enumerate(range(0, len(jobs), size))]
    shard = find_shard(options.shard)
    left = [task for task in tasks if shard.has(task[0]) and not is_made(options.out, task[0])]
    print(f"{len(jobs)} words to paint ({jobs[0].text} …), {len(tasks) - len(left)} of {len(tasks)} parts done")
    if left:
        make_parts(options, left, lambda: begin(options.out, note))
    absent = sum(not is_made(options.out, number) for number, _ in tasks)
    if absent:
        print(f"{options.out}: shard {shard} is done; {absent} of {len(tasks)} parts are not made yet")
        return
    with claimed(options.out / "join.lock") as mine:
        if not mine:
            print(f"{options.out}: shard {shard} is done; another process joins the parts")
            return
        accepted, attempts = merge(options.out, len(tasks))
        save_png(options.out / "contact_sheet.png", contact_sheet(options.out, regions))
    print(f"{options.out}: {accepted} of {attempts} words accepted; see contact_sheet.png")


if __name__ == "__main__":
    sys.exit(main())
