"""Renders a corpus to disk: several processes draw, one writes; it appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import zlib
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from common.data.lmdb import LmdbWriter
from common.data.parts import WHOLE_JOB, Shard
from common.data.sources import STAND_IN
from common.data.synth.fonts import Face, coverage_report, find_faces
from common.data.synth.lexicon import text_source
from common.data.synth.options import Part, SynthOptions, corpus_parts
from common.data.synth.shards import render_parts
from common.data.synth.sheet import write_sheet
from common.data.synth.word import RenderedWord, renderer_for
from common.errors import UserError
from common.files import write_text

RENDERER = 1  # raise it when the same options draw other samples
CARD = "corpus.json"
_NOTE = "options.json"  # of an unfinished corpus
_CHUNK = 100
_BYTES_PER_CROP = 8000  # of an LMDB with image, mask, boxes and label, rather too much than too little
_README = """This is a synthetic corpus, rendered by `strlab data synth`; no picture of it was photographed.

The folders evaluation/synth-NAME are stand-ins for public sets whose character they imitate (curved like CUTE80, in
perspective like SVTP, blurred like IC15, ...); tools that look for a set take its stand-in where the set is not there,
and keep the prefix in their tables. They do NOT hold the public sets: a figure measured here is not comparable with any
published one. Words and fonts of evaluation do not occur in training.

Options, fonts and sizes: corpus.json. Samples: contact_sheet.png. Keys per sample: image-, label-, mask- (PNG, 1 where
a letter is), boxes- (JSON [[x1, y1, x2, y2, "c"], ...] in pixels of the image), meta- (JSON: font, background).
"""


def render_corpus(
    out: str | Path,
    options: SynthOptions,
    workers: int | None = None,
    progress: bool = True,
    shard: Shard = WHOLE_JOB,
) -> Path:
    """Render the corpus of `options` into folder `out` and return it; do nothing if it is already there.

    The samples depend on `options` alone, not on `workers` (processes; None: one per core, 0: this process). With a
    `shard` only its parts are rendered; the shard that ends last finishes the corpus, so `out` may not be there yet.
    After an interruption the finished LMDBs are kept next to `out` and the next call resumes. Raises `UserError` for
    bad options, for an `out` that holds anything else, and for too little disk space.
    """
    out = Path(out)
    options.check()
    if is_rendered(out, options):
        if progress:
            print(f"{out}: already rendered with these options", flush=True)
        return out
    partial = out.absolute().with_name(f".{out.absolute().name}.rendering")
    _check_space(out.absolute(), options)
    if shard.count > 1:
        return _render_shard(out, partial, options, workers, progress, shard)
    with _only_one(partial):
        if is_rendered(out, options):  # by the process that we waited for
            return out
        faces = find_faces(options.font_sources, options.characters)
        for line in coverage_report(faces) if progress else ():
            print(f"font {line}", flush=True)
        _start(partial, options)
        parts = corpus_parts(options)
        workers = usable_cores() if workers is None else workers
        _render_parts(partial, parts, options, faces, workers, progress)
        _finish(partial, out, options, parts, faces)
    return out


def _finish(partial: Path, out: Path, options: SynthOptions, parts: list[Part], faces: tuple[Face, ...]) -> None:
    """All LMDBs are there: add the sheet and the metadata file, and give the corpus its name."""
    write_sheet(partial, parts)
    write_text(partial / "README.md", _README)
    write_text(partial / CARD, json.dumps(_card(options, parts, faces), indent=1, ensure_ascii=False))
    (partial / _NOTE).unlink()
    partial.replace(out)


def _render_shard(
    out: Path, partial: Path, options: SynthOptions, workers: int | None, progress: bool, shard: Shard
) -> Path:
    with _only_one(partial):
        if is_rendered(out, options):
            return out
        _start(partial, options, shared=True)
    faces, parts = find_faces(options.font_sources, options.characters), corpus_parts(options)
    jobs = {part.folder: iter(_jobs(part, options, faces)) for part in parts}
    plan = {"renderer": RENDERER, "options": options.as_dict()}
    workers = usable_cores() if workers is None else workers
    with tqdm(total=sum(part.size for part in parts) // shard.count, unit=" crops", disable=not progress) as bar:
        missing = render_parts(partial, jobs, _encode_range, plan, workers, shard, bar.update)
    if missing:
        print(f"{out}: shard {shard} is done; {missing} parts are not there yet", flush=True)
        return out
    with _only_one(partial):
        if not is_rendered(out, options):
            _finish(partial, out, options, parts, faces)
    return out


def usable_cores() -> int:
    """Cores that this process may use; where the system cannot say (macOS), all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_rendered(out: Path, options: SynthOptions) -> bool:
    """Whether `out` holds the corpus of `options`. Raises `UserError` when it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: it is a file: give a folder")
    card = out / CARD
    if not card.is_file():
        if any(out.iterdir()):
            raise UserError(f"{out}: it is not empty and has no {CARD}: give a new folder")
        return False
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
        old, version = found["options"], found["renderer"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{card}: not the metadata of a rendered corpus ({error!r}): delete {out} or give a new one"
        ) from None
    differ = [
        f"{name} {old.get(name)} -> {value}" for name, value in options.as_dict().items() if old.get(name) != value
    ]
    if version != RENDERER:
        differ.append(f"renderer {version} -> {RENDERER}")
    if differ:
        raise UserError(f"{out}: rendered with other options ({'; '.join(differ)}): delete it or give a new folder")
    return True


def render_range(
    part: Part, options: SynthOptions, faces: tuple[Face, ...], start: int, texts: list[str]
) -> list[RenderedWord]:
    """Samples `start`, `start` + 1, … of a part, which show `texts`: the unit of work of one process."""
    levels = [replace(options, difficulty=level) for level in options.difficulty.split("+")]
    renderers = [renderer_for(faces, part.split == "evaluation", level, part.style) for level in levels]
    words = []
    for number, text in enumerate(texts, start):
        rng = np.random.default_rng([options.seed, _part_key(part), number])
        words.append(renderers[number % len(renderers)].render(text, rng))
    return words


def _part_key(part: Part) -> int:
    return zlib.crc32(part.folder.replace(STAND_IN, "").encode())  # the prefix came later: samples stay the same


def _encode_range(job: tuple) -> list[tuple[bytes, str, bytes, bytes, bytes]]:
    return [(w.jpeg(), w.text, w.mask_png(), w.boxes_json(), w.meta_json()) for w in render_range(*job)]


def _prepare_worker() -> None:
    cv2.setNumThreads(0)  # the processes fill the cores by themselves
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops them


def _render_parts(
    root: Path, parts: list[Part], options: SynthOptions, faces: tuple[Face, ...], workers: int, progress: bool
) -> None:
    left = [part for part in parts if not (root / part.folder / "data.mdb").is_file()]
    total, done = sum(p.size for p in parts), sum(p.size for p in parts if p not in left)
    with contextlib.ExitStack() as stack:
        run = map
        if workers > 0 and left:  # the processes start up while this one draws the words
            run = stack.enter_context(multiprocessing.get_context("spawn").Pool(workers, _prepare_worker)).imap
        jobs = [job for part in left for job in _jobs(part, options, faces)]
        results = run(_encode_range, jobs)  # in order, whatever the number of processes
        bar = stack.enter_context(tqdm(total=total, initial=done, unit=" crops", disable=not progress, mininterval=1))
        for part in left:
            bar.set_description(part.folder)
            with LmdbWriter(root / part.folder) as writer:
                while writer.count < part.size:
                    samples = next(results)
                    for image, label, mask, boxes, meta in samples:
                        writer.add(image, label, mask=mask, boxes=boxes, meta=meta)
                    bar.update(len(samples))


def _jobs(part: Part, options: SynthOptions, faces: tuple[Face, ...]) -> list[tuple]:
    texts = text_source(options, part.split).draw(part.size, np.random.default_rng([options.seed, _part_key(part)]))
    starts = range(0, part.size, _CHUNK)
    return [(part, options, faces, start, texts[start : start + _CHUNK]) for start in starts]


def _card(options: SynthOptions, parts: list[Part], faces: tuple[Face, ...]) -> dict:
    packages = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "scikit-image", "wordfreq")
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "synthetic": "Rendered by `strlab data synth`. evaluation/synth-NAME are stand-ins for public sets.",
        "renderer": RENDERER,
        "options": options.as_dict(),
        "parts": {part.folder: {"crops": part.size, "words_and_fonts": part.split} for part in parts},
        "fonts": {
            "training": sorted({face.family for face in faces if not face.held_out}),
            "evaluation": sorted({face.family for face in faces if face.held_out}),
        },
        "packages": versions,
    }


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, against other processes that render the same corpus; they wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot write there ({error.strerror}): give another folder") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        # The one before us may have renamed the folder that we waited for.
        folder.mkdir(exist_ok=True)
        yield
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        os.close(handle)


def _start(partial: Path, options: SynthOptions, shared: bool = False) -> None:
    """Keep finished LMDBs of an interrupted run with the same options, and where it is `shared` what other shards are
    writing; throw away everything else."""
    note, wanted = partial / _NOTE, {"renderer": RENDERER, "options": options.as_dict()}
    try:
        same = json.loads(note.read_text(encoding="utf-8")) == wanted
    except (OSError, ValueError):
        same = False
    if same and shared:
        return
    for entry in partial.rglob("*") if same else partial.iterdir():
        if entry.is_dir() and (not same or entry.name.endswith(".tmp")):
            shutil.rmtree(entry, ignore_errors=True)
        elif not same:
            entry.unlink()
    if not same:
        write_text(note, json.dumps(wanted, indent=1))


def _check_space(out: Path, options: SynthOptions) -> None:
    parent = next(folder for folder in out.parents if folder.exists())
    need = (options.train + options.validation + options.evaluation) * _BYTES_PER_CROP
    free = shutil.disk_usage(parent).free
    if free < need:
        raise UserError(f"{out}: needs about {need >> 20} MiB, {free >> 20} MiB are free: free some or lower --train")
