"""Reading test sets: predictions of one LMDB folder and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.data.bad import BadSample, BadSamples
from common.data.loader import SeededSampler, word_loader
from common.errors import UserError
from common.files import write_text
from common.metrics.papers import SetMetrics, ssm_metrics
from common.text.coverage import empty_line
from projects.ssm.finetune.data import label_rules, open_words, rotation
from projects.ssm.finetune.reader import SSMReader


@dataclass
class SetReading:
    """One set: figures, (label, adapted or raw prediction, confidence) of every word, pictures that cannot be read."""

    figures: SetMetrics
    words: list[tuple[str, str, float]] = field(default_factory=list)
    unreadable: list[BadSample] = field(default_factory=list)


def test_root(root: Path, name: str) -> Path | None:
    """Folder of a test set: test/<name> (of `test_custom.py` test_custom/<name>) as published, evaluation/<name> in our
    tree, None where neither is."""
    own = {"IIIT5k": "IIIT5k_3000"}.get(name, name)
    for folder in (f"test/{name}", f"test_custom/{name}", f"evaluation/{name}", f"evaluation/{own}"):
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
    """Read all words below `folder`; labels pass the adapter of `charset`, long and empty ones are left out.

    Labels are folded to ASCII unless letters outside it are compared or read. Pictures that cannot be read are in no
    figure, however many they are.
    """
    rules = label_rules(charset, max_length, ascii_fold=(charset + reader.charset).isascii())
    dataset = open_words(folder, reader.image_size, rules, rotation(degrees))
    if empty := dataset.counts["empty"]:
        print(empty_line(str(folder), empty))
    sampler = SeededSampler(len(dataset), batch_size, shuffle=False)
    bad = BadSamples(len(dataset) + len(dataset.index_bad), limit=1.0)
    words = []
    for batch in word_loader(dataset, sampler, workers, bad=bad):
        found = reader.read(batch.images.to(reader.device))
        words += [(label, one.text, one.confidence) for label, one in zip(batch.labels, found)]
    if not words:
        raise UserError(f"{folder}: no word could be read")
    return SetReading(figures_of(words, charset), words, bad.rows())


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
    """Figures and words of every set, beside the table."""
    content = {
        name: {"figures": reading.figures._asdict(), "words": reading.words, "unreadable": len(reading.unreadable)}
        for name, reading in readings.items()
    }
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1))


def list_unreadable(path: Path, readings: Iterable[SetReading]) -> str:
    """Write the pictures that could not be read as a CSV to `path`; a line that tells of it, empty without any."""
    found = [sample for reading in readings for sample in reading.unreadable]
    path.unlink(missing_ok=True)
    BadSamples(len(found), limit=1.0, file=path).add(found)
    return f"{len(found)} unreadable pictures are in no figure; they are listed in {path}\n" if found else ""
