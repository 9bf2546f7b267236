"""Reading test sets: the checkpoint and what is compared, predictions of LMDB folders and their figures."""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from common.data.bad import BadSample, BadSamples
from common.data.loader import reading_loader
from common.data.sources import STAND_IN
from common.errors import UserError
from common.files import write_text
from common.metrics.papers import SetMetrics, ssm_metrics
from common.text.charset import DIGITS, LOWER, UPPER
from common.text.coverage import empty_line
from projects.ssm.finetune.data import label_rules, open_words, rotation
from projects.ssm.finetune.files import open_model, parse_model_args, to_device
from projects.ssm.finetune.flags import EvalOptions
from projects.ssm.finetune.reader import SSMReader


@dataclass
class SetReading:
    """One set: figures, (label, adapted or raw prediction, confidence) of every word, pictures that cannot be read."""

    figures: SetMetrics
    words: list[tuple[str, str, float]] = field(default_factory=list)
    unreadable: list[BadSample] = field(default_factory=list)


class Opened(NamedTuple):
    """A checkpoint's reader, its longest word, and the characters that are compared."""

    reader: SSMReader
    longest: int
    charset: str


def charset_of(cased: bool, punctuation: bool, trained: str) -> str:
    """What is compared: digits and small letters, `cased` also capitals, with `punctuation` marks; of the charset
    `trained` also the characters outside ASCII, by the same switches."""
    ascii_part = DIGITS + LOWER + (UPPER if cased else "") + (string.punctuation if punctuation else "")

    def asked(character: str) -> bool:
        mark = unicodedata.category(character)[0] in "PS"
        return (punctuation or not mark) and (cased or character == character.lower())

    return ascii_part + "".join(one for one in trained if not one.isascii() and asked(one))


def open_for_test(o: EvalOptions) -> Opened:
    """The reader of `test.py` with the arguments `name:type=value`; `charset_test` among them says what is compared."""
    arguments = parse_model_args(o.model_words)
    given = arguments.get("charset_test")
    if given is not None and (o.cased or o.punctuation or not (given and isinstance(given, str))):
        raise UserError("charset_test:str=…: give the characters to compare, without --cased and --punctuation")
    arguments.setdefault("charset_test", charset_of(o.cased, o.punctuation, ""))
    print(f"Additional keyword arguments: {arguments}")
    device = to_device(o.device)
    model, used = open_model(o.file, arguments, o.standard)
    average = Path(o.file).with_name("swa.ckpt")
    if average.is_file() and not (Path(o.file).is_file() and average.samefile(o.file)):
        print(f"{average} holds the averaged weights of this run's last epochs; give it to measure them")
    charset = given or charset_of(o.cased, o.punctuation, used["charset_train"])
    if not (charset + used["charset_train"]).isascii():
        print(f"{len(charset)} characters are compared; labels are not folded to ASCII")
    reader = SSMReader(model.to(device).eval(), used["charset_train"], tuple(used["img_size"]), device)
    return Opened(reader, used["max_label_length"], charset)


def read_groups(
    model: Opened, root: Path, chosen: Mapping[str, Sequence[str]], o: EvalOptions
) -> dict[str, SetReading]:
    """Every set of the groups, read once, by its own name or that of its rendered stand-in.

    Raises `UserError` where none of them is there.
    """
    names = sorted({name for members in chosen.values() for name in members})
    places = {name: test_root(root, name) for name in names}
    missing = [name for name, place in places.items() if place is None]
    if len(missing) == len(names):
        raise UserError(f"--data_root: {root} holds no test/{names[0]} or evaluation/{names[0]}; give the data's root")
    if missing:
        print(f"not there, skipped: {', '.join(missing)}")
    readings = {}
    for name, place in places.items():
        if place is not None:
            name = f"{STAND_IN}{name}" if place.name.startswith(STAND_IN) else name
            found = readings[name] = read_set(
                model.reader, place, model.charset, max_length=model.longest, batch_size=o.batch_size,
                workers=o.num_workers, degrees=o.rotation,
            )  # fmt: skip
            missed = f", {len(found.unreadable)} unreadable" if found.unreadable else ""
            print(f"{name}: {found.figures.accuracy:.2f} %{missed}", flush=True)
    return readings


def test_root(root: Path, name: str) -> Path | None:
    """Folder of a test set: test/<name> (of `test_custom.py` test_custom/<name>) as published, evaluation/<name> in our
    tree, else its rendered stand-in; None where none of them is."""
    own = {"IIIT5k": "IIIT5k_3000"}.get(name, name)
    published = (f"test/{name}", f"test_custom/{name}", f"evaluation/{name}", f"evaluation/{own}")
    for folder in (*published, f"evaluation/{STAND_IN}{name}", f"evaluation/{STAND_IN}{own}"):
        if (root / folder).is_dir():
            return root / folder
    return None


@torch.inference_mode()
def read_set(
    reader: SSMReader,
    folder: Path,
    charset: str,
    *,
    max_length: int = 25,
    batch_size: int = 512,
    workers: int = 4,
    degrees: int = 0,
) -> SetReading:
    """Read all words below `folder`; labels pass the adapter of `charset`, long and empty ones are skipped.

    Labels are folded to ASCII unless letters outside it are compared or read. Pictures that cannot be read are in no
    figure, however many they are.
    """
    rules = label_rules(charset, max_length, ascii_fold=(charset + reader.charset).isascii())
    dataset = open_words(folder, reader.image_size, rules, rotation(degrees))
    if empty := dataset.counts["empty"]:
        print(empty_line(str(folder), empty))
    batches, words = reading_loader(dataset, batch_size, workers), []
    for batch in batches:
        found = reader.read(batch.images.to(reader.device))
        words += [(label, one.text, one.confidence) for label, one in zip(batch.labels, found)]
    if not words:
        raise UserError(f"{folder}: no word could be read")
    return SetReading(figures_of(words, charset), words, batches.bad.rows())


def figures_of(words: Sequence[tuple[str, str, float]], charset: str) -> SetMetrics:
    """Figures of (label, prediction, confidence) words."""
    labels, texts, confidences = zip(*words)
    return ssm_metrics(texts, labels, confidences, charset)


def by_length(readings: Iterable[SetReading], charset: str) -> dict[str, SetMetrics]:
    """Figures of all words of some sets by the length of their label: `len_1`, `len_2`, … as far as there are any."""
    groups: dict[int, list[tuple[str, str, float]]] = {}
    for reading in readings:
        for word in reading.words:
            groups.setdefault(len(word[0]), []).append(word)
    return {f"len_{length}": figures_of(groups[length], charset) for length in sorted(groups)}


def write_json(path: Path, readings: dict[str, SetReading]) -> None:
    """Write figures and words of every set, next to the table."""
    content = {
        name: {"figures": reading.figures._asdict(), "words": reading.words, "unreadable": len(reading.unreadable)}
        for name, reading in readings.items()
    }
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1))


def list_unreadable(path: Path, readings: Iterable[SetReading]) -> str:
    """Write the pictures that could not be read as a CSV to `path`; a line about it, empty without any."""
    found = [sample for reading in readings for sample in reading.unreadable]
    path.unlink(missing_ok=True)
    BadSamples(len(found), limit=1.0, file=path).add(found)
    return f"{len(found)} unreadable pictures are in no figure; they are listed in {path}\n" if found else ""
