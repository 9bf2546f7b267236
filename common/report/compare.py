"""`strlab compare`: several readers on the same words, in one table and one page.

Each READER is a checkpoint, the folder of a reproduction (its evaluated checkpoint is taken), the name of a shipped
reader, or a peer (`tesseract`, `rapidocr`, `nano-ocr`), with an optional label before it (`SIGA=outputs/siga/cpu`).
Readers with the same label count as seeds of one method: the table then gives their mean and range. For every set and
protocol the table shows word accuracy in % with its 95 % Wilson interval and the number of words; McNemar's test
compares each reader with the first one on the same words; speed is measured on one core, for seeds of one method once.

Readers that were trained on different data are refused without `--any-data`: such a table would compare the data and
not the methods.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.console import FIRST, show
from common.data.decode import BadImage
from common.data.sources import open_words
from common.errors import UserError
from common.files import read_json, write_text
from common.infer import shipped
from common.infer.evaluate import NAMES, evaluate, find_sets
from common.infer.peers import PEERS, open_peer, peer_version
from common.infer.recognizer import Reader, Recognizer, open_recognizer, read_card
from common.report.compare_page import write_files
from common.report.compared import UNKNOWN, Entry, Word
from common.report.finished import ABOUT, Finished

PEER_DATA = "its makers' data"  # shown for comparison; never a reason to refuse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("compare", help="several readers in one table", description=__doc__)
    parser.add_argument(
        "readers", nargs="*", metavar="[LABEL=]READER", help="checkpoint, run folder or shipped name; none: all shipped"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="word sets to read")
    parser.add_argument("--select", nargs="*", metavar="NAME", help="only sets with one of these in their path")
    parser.add_argument("--max-samples", type=int, default=0, metavar="N", help="the first N words of a set (0: all)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/compare"),
        metavar="FOLDER",
        help="where table and page are written (default: outputs/compare)",
    )
    parser.add_argument("--any-data", action="store_true", help="compare readers trained on different data")
    parser.add_argument("--no-speed", action="store_true", help="skip the measurement of speed")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    sets = find_sets(args.data, args.select)
    wanted = [named(text) for text in args.readers] or [(one.name, str(one.path)) for one in shipped.all_shipped()]
    if not wanted:
        raise UserError("strlab compare: no reader is given and none ships with this installation; give checkpoints")
    opened = [(label, open_peer(at) if at in PEERS else open_recognizer(at, engine="torch")) for label, at in wanted]
    entries = [_entry(label, recognizer) for label, recognizer in opened]
    _refuse_different_data(entries, args.any_data)
    for entry in entries:
        same = [other for other in entries if other.label == entry.label]
        entry.number = next(i for i, other in enumerate(same, 1) if other is entry) if len(same) > 1 else 0
    for entry, (_, recognizer) in zip(entries, opened):
        print(f"{entry.name}: {entry.path}", flush=True)
        if entry.model not in PEERS:
            _measure_size(entry, recognizer)
            seed = next((e for e in entries if e.speed and (e.label, e.flops) == (entry.label, entry.flops)), None)
            entry.speed = (
                {} if args.no_speed else seed.speed if seed else measure_speed(recognizer, sample(recognizer, sets))
            )
        entry.words = read_words(
            recognizer, sets, args.max_samples, args.out / "cache", way_of_reading(entry, recognizer)
        )
    for name in sets:
        if entries[0].accuracy("36", name) is None:
            raise UserError(f"{sets[name]}: no label has a letter or digit, so there is nothing to compare under 36")
    page = write_files(args.out, entries, sets, args.any_data)
    show(page.text, FIRST, header=True)
    print(f"written: {page.html} with compare.md, compare.csv and compare.tex")
    return 0


def way_of_reading(entry: Entry, recognizer: Recognizer) -> str:
    """What decides what is read in a word: the weights, and whether unsure words are looked at again."""
    return f"{entry.sha256} second look" if getattr(recognizer.reader, "second_look", False) else entry.sha256


def named(text: str) -> tuple[str, str]:
    """Label and checkpoint, or label and peer, of one argument."""
    label, equals, rest = text.partition("=")
    label, rest = (label, rest) if equals else ("", text)
    if rest in PEERS:
        return label or rest, rest
    path = Path(rest).expanduser()
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise UserError(
                f"strlab compare: {rest} does not exist; give a checkpoint, a run folder or a reader's name"
            )
        one = shipped.find(rest)
        return label or one.name, str(one.path)
    finished = path / "finished.json"
    if not finished.is_file():
        return label or path.stem, str(path)
    run = Finished.load(path)
    if run.checkpoint is None:
        raise UserError(f"{finished}: this run evaluated no checkpoint; give one of its checkpoints instead")
    return label or f"{run.project} ({run.scale})", str(run.checkpoint)


def _entry(label: str, recognizer: Recognizer) -> Entry:
    """The facts about a reader that its metadata state."""
    if recognizer.name in PEERS:
        version = peer_version(recognizer.name)
        return Entry(
            label, Path(recognizer.name), recognizer.name, PEER_DATA, None, UNKNOWN, f"{recognizer.name} {version}"
        )
    card, path = read_card(recognizer.source), Path(recognizer.source)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()
    about = _about_run(path)
    return Entry(
        label=label,
        path=path,
        model=recognizer.name,
        data=str(card.get("data") or card.get("train_data") or about.get("data") or UNKNOWN),
        images_seen=card.get("images_seen") or about.get("images_seen"),
        commit=str(card.get("commit") or UNKNOWN),
        sha256=digest,
    )


def _about_run(checkpoint: Path) -> dict[str, Any]:
    """What the reproduction that a checkpoint belongs to states of its data; {} for other checkpoints."""
    for folder in list(checkpoint.absolute().parents)[:4]:
        file = folder / ABOUT
        if file.is_file():
            return json.loads(file.read_text("utf-8"))
    return {}


def _refuse_different_data(entries: Sequence[Entry], allowed: bool) -> None:
    data = {entry.data: entry.label for entry in entries if entry.data != PEER_DATA}
    if allowed or len(data) <= 1:
        return
    stated = "; ".join(f"{label}: {text}" for text, label in data.items())
    raise UserError(
        f"strlab compare: the readers were trained on different data ({stated}); to compare, add --any-data"
    )


def _measure_size(entry: Entry, recognizer: Recognizer) -> None:
    """Parameters, and operations of one image by PyTorch's counter."""
    model = recognizer.reader.model.requires_grad_(False)  # the counter looks for gradients even where none are kept
    entry.parameters = sum(parameter.numel() for parameter in model.parameters())
    blank = torch.zeros(1, *recognizer.image_size, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, one_look(recognizer.reader):
        recognizer.read_batch(blank)
    entry.flops = int(counter.get_total_flops())


@contextlib.contextmanager
def one_look(reader: Reader) -> Iterator[None]:
    """Keep a reader that would look at a blank picture again from doing so."""
    before = getattr(reader, "second_look", None)
    if before is None:
        yield
        return
    reader.second_look = False
    try:
        yield
    finally:
        reader.second_look = before


def sample(recognizer: Recognizer, sets: dict[str, Path], most: int = 64) -> torch.Tensor:
    """The first words of the sets, as many of each, fitted into the reader's input: uint8 [N, H, W, 3]."""
    crops: list[np.ndarray] = []
    for path in sets.values():
        words = open_words(path)
        for number in range(min(len(words), max(1, most // len(sets)))):
            with contextlib.suppress(BadImage, KeyError):  # counted where the words are read
                crops.append(recognizer.prepare(words.image_bytes(number)))
    return torch.from_numpy(np.stack(crops or [np.zeros((*recognizer.image_size, 3), np.uint8)]))


def measure_speed(recognizer: Recognizer, crops: torch.Tensor, seconds: float = 1.5) -> dict[int, float]:
    """Images a second on one core at batch 1 and 32: `crops` again and again for `seconds`, decoding not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        for batch in (1, 32):
            parts = crops.repeat(-(-batch // len(crops)), 1, 1, 1).split(batch)
            recognizer.read_batch(parts[0])
            rounds, began = 0, time.perf_counter()
            while not rounds or time.perf_counter() < began + seconds:
                for part in parts:
                    recognizer.read_batch(part)
                rounds += 1
            found[batch] = rounds * sum(map(len, parts)) / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return found


def read_words(recognizer: Recognizer, sets: dict[str, Path], max_samples: int, cache: Path, digest: str) -> list[Word]:
    """Read every set, or take what an earlier comparison read with the same checkpoint of the same data."""
    words: list[Word] = []
    for name, path in sets.items():
        stored = cache / f"{_key(digest, path, max_samples)}.json"
        lines: list[list[Any]]
        if stored.is_file():
            lines = read_json(stored, list)
            print(f"  {name}: read before", flush=True)
        else:
            lines = [list(line) for line in evaluate(recognizer, {name: path}, max_samples).lines]
            write_text(stored, json.dumps(lines, ensure_ascii=False))
        for _, index, label, text, confidence, _, *rest in lines:
            correct = {protocol: bool(mark) for protocol, mark in zip(NAMES, rest) if mark != ""}
            words.append(Word(name, int(index), label, text, float(confidence), correct))
    return words


def _key(digest: str, path: Path, max_samples: int) -> str:
    """What decides the predictions: the checkpoint's bytes, and the set by its files' sizes and times."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps([digest, stats, max_samples]).encode()).hexdigest()[:24]
