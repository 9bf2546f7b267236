#!/usr/bin/env python
"""Make a word data set: scenes -> other words for their regions -> painting -> a reader keeps what it reads right.

python projects/textssr/synthesize.py scenes/test.json OUT --reader best.pth --match 36 --vae … --unet … --scheduler …

OUT gets `words/` (num-samples, image-%09d as PNG, label-%09d: all other projects train on it), `manifest.jsonl` (a line
for each attempt: label, prediction, confidence, source picture, polygon, seed, accepted) and `parts/`, from which an
interrupted run goes on: the same command again. What is made depends on the flags, not on the number of processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import torch
from tqdm.auto import tqdm

from common.data.lmdb import LmdbWriter, WordLmdb
from common.errors import UserError, command
from common.files import write_text
from common.metrics.protocols import PROTOCOLS
from projects.textssr.data import Regions
from projects.textssr.infer import add_model_flags, open_generator, open_regions
from projects.textssr.painting import Generator, region_of, sample_draws
from projects.textssr.readers import Read, check_reader, open_reader
from projects.textssr.words import anagrams, fitting, read_list

NOTE = "options.json"
NOT_PART_OF_RESULT = ("out", "workers", "device", "threads")


@dataclass(frozen=True)
class Job:
    """One attempt: which word of the scenes, what to paint there, and the seed of its noise."""

    index: int
    text: str
    seed: int


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="scenes: AnyWord JSON file or LMDB folder")
    parser.add_argument("out", type=Path, help="folder of the data set")
    texts = parser.add_argument_group("texts")
    texts.add_argument("--words", type=Path, default=None, help="word list (one a line) instead of anagrams")
    texts.add_argument("--per-region", type=int, default=4, help="words for each region (default: 4)")
    texts.add_argument("--keep-original", action="store_true", help="the region's own word counts as an anagram")
    texts.add_argument("--limit", type=int, default=None, help="use only so many regions")
    texts.add_argument("--language", default=None, help="only regions of this language (JSON)")
    keep = parser.add_argument_group("filter")
    keep.add_argument("--reader", default=None, help="checkpoint of one of our readers, or rapidocr (package)")
    keep.add_argument("--reader-model", default=None, help="its model, where no card stands beside it")
    keep.add_argument("--match", choices=("exact", "36", "62", "94"), default="exact", help="when it counts as read")
    keep.add_argument("--no-filter", action="store_true", help="keep everything")
    run = parser.add_argument_group("running")
    run.add_argument("--workers", type=int, default=0, help="further processes (default: none)")
    run.add_argument("--threads", type=int, default=1, help="threads of each process on the CPU")
    run.add_argument("--part-size", type=int, default=64, help="attempts between two savings")
    add_model_flags(parser)
    return parser.parse_args(argv)


def plan(options: argparse.Namespace, texts: Sequence[str]) -> list[Job]:
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

    def __init__(self, options: argparse.Namespace) -> None:
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
            sample, source = self.regions.with_source(job.index, job.text)
            if sample is None:
                entry = {"label": job.text, "region": job.index, "accepted": False, "reason": "region cannot be used"}
                results.append((job, None, entry))
            else:
                usable.append((job, sample, source[1]))
        if usable:
            draw = sample_draws([job.seed for job, *_ in usable])
            crops = self.generator.paint([sample for _, sample, _ in usable], draw)
            cut = [region_of(crop, sample.mask) for crop, (_, sample, _) in zip(crops, usable)]
            readings = self.reader(cut) if self.reader else [None] * len(cut)
            for (job, _, polygon), crop, reading in zip(usable, cut, readings):
                results.append((job, crop, self._entry(job, polygon, reading)))
        return results

    def _entry(self, job: Job, polygon: list, reading) -> dict:
        entry = {"label": job.text, "region": job.index, "source": self.regions.source_name(job.index)}
        entry |= {"polygon": polygon, "seed": job.seed}
        if reading is None:
            return entry | {"accepted": True}
        entry |= {"prediction": reading.text, "confidence": round(float(reading.confidence), 4)}
        return entry | {"accepted": self.options.no_filter or matches(reading.text, job.text, self.options.match)}


def matches(prediction: str, label: str, rule: str) -> bool:
    """Whether a reading is right: exactly, or after the normalisation of the 36-, 62- or 94-character protocol."""
    if rule == "exact":
        return prediction == label
    protocol = next(protocol for protocol in PROTOCOLS if protocol.name == rule)
    return protocol.normalise(prediction) == protocol.normalise(label) != ""


_worker: Worker | None = None


def _start(options: argparse.Namespace) -> None:
    global _worker
    _worker = Worker(options)


def _make(task: tuple[int, list[Job]]) -> int:
    return _worker.make(*task)


def check(options: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, and a folder that another command began."""
    if options.reader is None and not options.no_filter:
        raise UserError("--reader: give a checkpoint that filters the words, or --no-filter to keep all")
    if options.reader is not None:
        check_reader(options.reader)
    if min(options.per_region, options.part_size, options.batch_size) < 1:
        raise UserError("--per-region, --part-size, --batch-size: give 1 or more")
    values = {name: str(value) for name, value in vars(options).items() if name not in NOT_PART_OF_RESULT}
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    note = options.out / NOTE
    if note.is_file() and json.loads(note.read_text("utf-8")).get("key") != key:
        raise UserError(f"{options.out}: begun with other flags (see {NOTE}); give a new folder")
    (options.out / "parts").mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps({"key": key, **values}, indent=1))


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
    options = parse(argv)
    options.text = None
    check(options)
    jobs = plan(options, open_regions(options).texts())
    if not jobs:
        raise UserError(f"{options.data}: no word has anagrams; give --words or other scenes")
    size = options.part_size
    tasks = [(number, jobs[start : start + size]) for number, start in enumerate(range(0, len(jobs), size))]
    left = [task for task in tasks if not (options.out / "parts" / f"{task[0]:06d}.jsonl").is_file()]
    print(f"{len(jobs)} words to paint ({jobs[0].text} …), {len(tasks) - len(left)} of {len(tasks)} parts done")
    if left and options.workers > 0:
        with multiprocessing.get_context("spawn").Pool(options.workers, _start, (options,)) as pool:
            list(tqdm(pool.imap_unordered(_make, left), total=len(left), desc="Parts"))
    elif left:
        worker = Worker(options)
        for task in tqdm(left, desc="Parts"):
            worker.make(*task)
    accepted, attempts = merge(options.out, len(tasks))
    print(f"{options.out}: {accepted} of {attempts} words accepted")


if __name__ == "__main__":
    sys.exit(main())
