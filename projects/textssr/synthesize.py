#!/usr/bin/env python
"""Make a word data set: scenes -> other words for their regions -> painting -> a reader keeps what it reads right.

python projects/textssr/synthesize.py scenes/test.json OUT --reader best.pth --match 36 --vae … --unet … --scheduler …

OUT gets `words/` (num-samples, image-%09d as PNG, label-%09d: all other projects train on it), `manifest.jsonl` (a line
for each attempt: label, prediction, confidence, source picture, polygon, seed, accepted or why not) and `parts/`, from
which an interrupted run resumes: the same command again. What is made depends on the flags and the files that they
name, not on the number of processes; another command, or other files under the same names, needs a new folder.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import torch
from tqdm.auto import tqdm

from common.data.lmdb import LmdbWriter, WordLmdb
from common.data.parts import claimed, find_shard
from common.errors import UserError, command
from common.files import write_text
from common.infer.recognizer import Prediction
from common.metrics.protocols import PROTOCOLS
from projects.textssr.data import Regions
from projects.textssr.flags import SynthesisOptions, parse_synthesis
from projects.textssr.fonts import Coverage, default_font
from projects.textssr.judge import Read, check_reader, open_reader
from projects.textssr.opening import check_font, open_generator, open_regions
from projects.textssr.painting import Generator, region_of, sample_draws
from projects.textssr.word_choice import anagrams, fitting, read_list

NOTE = "options.json"
NOT_PART_OF_RESULT = ("out", "workers", "device", "threads", "shard")
FILES = ("data", "words", "reader", "vae", "unet", "scheduler", "font")
"""Flags that name files: what is made depends on those too."""


@dataclass(frozen=True)
class Job:
    """One attempt: which word of the scenes, what to paint there, and the seed of its noise."""

    index: int
    text: str
    seed: int


def plan(options: SynthesisOptions, texts: Sequence[str]) -> list[Job]:
    """All attempts, in order; the same flags and scenes give the same."""
    by_length = read_list(options.words) if options.words else None
    jobs = []
    for index, text in enumerate(texts[: options.limit]):
        rng = random.Random(f"{options.seed}/{index}")
        if by_length is None:
            made = anagrams(text, options.per_region, rng, include_original=options.keep_original)
        else:
            made = fitting(text, by_length, options.per_region, rng)
        jobs += [Job(index, word, rng.getrandbits(48)) for word in made]
    return jobs


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
        folder, lines, accepted = self.options.out / "parts", [], 0
        with LmdbWriter(folder / f"{number:06d}", overwrite=True) as writer:
            for start in range(0, len(jobs), self.options.batch_size):
                for job, crop, entry in self._attempt(jobs[start : start + self.options.batch_size]):
                    lines.append(json.dumps(entry, ensure_ascii=False))
                    if entry["accepted"]:
                        writer.add(cv2.imencode(".png", crop[..., ::-1])[1].tobytes(), job.text)
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
    if rule == "exact":
        return prediction == label
    protocol = next(protocol for protocol in PROTOCOLS if protocol.name == rule)
    return protocol.normalise(prediction) == protocol.normalise(label) != ""


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
    """The note of this command, for its folder. Refuses a reader that is not there, and another command's folder."""
    if options.reader is not None:
        check_reader(options.reader)
    values = {name: str(value) for name, value in vars(options).items() if name not in NOT_PART_OF_RESULT}
    note, path = {"flags": values, "files": fingerprints(options)}, options.out / NOTE
    old = json.loads(path.read_text("utf-8")) if path.is_file() else note
    if old.get("flags") != values:
        raise UserError(f"{options.out}: begun with other flags (see {NOTE}); give a new folder")
    changed = [name for name, state in note["files"].items() if old["files"].get(name) != state]
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
        path = Path(default_font() if name == "font" and value is None else value or "")
        files = [path] if path.is_file() else sorted(path.rglob("*")) if value and path.is_dir() else []
        for file in [file for file in files if file.is_file() and file.name != "lock.mdb"]:
            status = file.stat()
            found[str(file)] = [status.st_size, status.st_mtime_ns]
    return found


def is_made(out: Path, number: int) -> bool:
    """Whether a part is finished."""
    return (out / "parts" / f"{number:06d}.jsonl").is_file()


def merge(out: Path, parts: int) -> tuple[int, int]:
    """Join the parts: (accepted, attempts)."""
    lines, accepted = [], 0
    with LmdbWriter(out / "words", overwrite=True) as writer:
        for number in range(parts):
            lines.append((out / "parts" / f"{number:06d}.jsonl").read_text(encoding="utf-8"))
            part = WordLmdb(out / "parts" / f"{number:06d}")
            for index in range(len(part)):
                writer.add(part.image_bytes(index), part.label(index))
            part.close()
        accepted = writer.count
    content = "".join(lines)
    write_text(out / "manifest.jsonl", content)
    return accepted, content.count("\n")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Plan, paint what is left, join."""
    options = parse_synthesis(argv, __doc__)
    note = check(options)
    regions = open_regions(options)
    jobs = plan(options, regions.texts())
    if not jobs:
        raise UserError(f"{options.data}: no word has anagrams; give --words or other scenes")
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
    print(f"{options.out}: {accepted} of {attempts} words accepted")


if __name__ == "__main__":
    sys.exit(main())
