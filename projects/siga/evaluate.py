"""Evaluation of SIGA over word sets, by the paper's rules, shared over all processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from common.data.loader import Batch, reading_loader
from common.data.words import WordDataset
from common.metrics.papers import score_word
from common.metrics.protocols import PROTOCOL_36
from common.text.codecs import Decoded
from common.train.distributed import Dist
from projects.siga.model.base import SigaModel
from projects.siga.model.build import Codec
from projects.siga.model.losses import recognition_loss

T_HEADS = ("TRBA", "glyph", "Iter", "final")
T_LOGITS = {"TRBA": "trba", "Iter": "iter1", "final": "share"}


@dataclass
class SetResult:
    """Sums over one set: words, exact matches of Share, 1-NED, confidence, matches of each T head, loss and seconds."""

    words: int = 0
    correct: int = 0
    ned: float = 0.0
    confidence: float = 0.0
    heads: dict[str, int] = field(default_factory=dict)
    loss: float = 0.0
    batches: int = 0
    seconds: float = 0.0
    bad: int = 0

    @property
    def accuracy(self) -> float:
        """Word accuracy of Share in %."""
        return 100.0 * self.correct / self.words if self.words else 0.0

    @property
    def mean_ned(self) -> float:
        """1-NED in %."""
        return 100.0 * self.ned / self.words if self.words else 0.0

    def head(self, name: str) -> float:
        """Word accuracy of one T head in %."""
        return 100.0 * self.heads.get(name, 0) / self.words if self.words else 0.0

    def add(self, other: SetResult) -> None:
        for name in ("words", "correct", "ned", "confidence", "loss", "batches", "seconds", "bad"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, count in other.heads.items():
            self.heads[name] = self.heads.get(name, 0) + count


@dataclass
class Evaluation:
    """All sets of one evaluation, in order; totals weigh sets by their words (overlapping sets count twice, as
    published).

    `samples`: (truth, prediction, confidence) of a few words.
    """

    sets: dict[str, SetResult]
    samples: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def total(self) -> SetResult:
        total = SetResult()
        for result in self.sets.values():
            total.add(result)
        return total

    @property
    def accuracy(self) -> float:
        """Word accuracy of Share in % over all words."""
        return self.total.accuracy

    @property
    def heads(self) -> dict[str, float]:
        """Word accuracy in % of every T head, and of "out", the most confident of the four."""
        total = self.total
        return {name: total.head(name) for name in (*T_HEADS, "out")}

    @property
    def best_accuracy(self) -> float:
        """What the best checkpoint is chosen by: Share (R, S), the best of T's five lists."""
        return max([self.accuracy, *self.heads.values()])

    @property
    def loss(self) -> float:
        """Mean cross entropy of Share over batches (T)."""
        total = self.total
        return total.loss / total.batches if total.batches else 0.0


def decode(codec: Codec, logits: torch.Tensor) -> list[Decoded]:
    """Greedy text and confidence of logits [B, T, C]: arg-max and its probability at every step."""
    probabilities, ids = logits.float().softmax(dim=2).max(dim=2)
    return codec.decode(ids.cpu().numpy(), probabilities.cpu().numpy())


def exact(prediction: str, truth: str, family: str) -> tuple[bool, float]:
    """(read exactly, 1-NED). R and S compare lower-case letters and digits only, 1-NED 0 for an empty side; T
    compares all."""
    score = score_word(prediction, truth, str if family == "T" else PROTOCOL_36.normalise)
    return score.correct, score.similarity


def most_confident(readings: list[Decoded]) -> Decoded:
    """The reading with the highest confidence; a later one must be strictly surer than all before it."""
    best = readings[0]
    for reading in readings[1:]:
        if reading.confidence > best.confidence:
            best = reading
    return best


def read_batch(
    model: SigaModel, codec: Codec, batch: Batch, device: torch.device, result: SetResult, glyph: str = "glyph1"
) -> list[Decoded]:
    """Read one batch, add its sums to `result`, return Share's readings. `glyph`: which glyph head T reports."""
    family = model.settings.family
    images = model.normalise(batch.images.to(device, non_blocking=True))
    started = time.perf_counter()
    if family != "T":
        share = decode(codec, model.read(images)[0].logits)
    else:
        logits = model(images).logits
        lists = {name: decode(codec, logits[T_LOGITS.get(name, glyph)]) for name in T_HEADS}
        share = lists["final"]
        for row, label in enumerate(batch.labels):
            readings = [lists[name][row] for name in T_HEADS]
            for name, reading in zip((*T_HEADS, "out"), (*readings, most_confident(readings))):
                result.heads[name] = result.heads.get(name, 0) + (reading.text == label)
        result.loss += share_loss(codec, logits["share"], batch.labels)
        result.batches += 1
    result.seconds += time.perf_counter() - started
    for reading, label in zip(share, batch.labels):
        same, ned = exact(reading.text, label, family)
        result.words += 1
        result.correct += same
        result.ned += ned
        result.confidence += reading.confidence
    return share


def share_loss(codec: Codec, logits: torch.Tensor, labels: list[str]) -> float:
    """T's validation loss of a batch: cross entropy of the greedy Share logits, padding ignored; over-long words left
    out."""
    longest = logits.shape[1] - 1
    kept = [row for row, label in enumerate(labels) if len(label) <= longest and set(label) <= set(codec.charset)]
    if not kept:
        return 0.0
    ids, lengths = codec.encode([labels[row] for row in kept])
    text, lengths = (torch.from_numpy(values).to(logits.device) for values in (ids, lengths))
    return float(recognition_loss(logits[kept], text, lengths, ignore_padding=True))


@torch.no_grad()
def evaluate(
    model: SigaModel,
    codec: Codec,
    sets: Mapping[str, WordDataset],
    *,
    batch_size: int,
    workers: int,
    dist: Dist,
    glyph: str = "glyph1",
    show: int = 5,
) -> Evaluation:
    """Read all sets. Every rank takes each `world_size`-th word and all get the sums.

    Args:
        model: the bare module; it is put into eval mode and back.
        codec: text <-> ids.
        sets: data sets by name.
        batch_size, workers: of the loaders.
        dist: the process group.
        glyph: the glyph head that T reports: glyph1 (while training), iter2 (released test script).
        show: words whose readings are kept for the log.
    """
    training = model.training
    model.eval()
    results, samples = {}, []
    for name, dataset in sets.items():
        result = SetResult()
        place = {"rank": dist.rank, "world_size": dist.world_size}
        for batch in reading_loader(dataset, batch_size, workers, **place):
            readings = read_batch(model, codec, batch, dist.device, result, glyph)
            result.bad += len(batch.bad)
            free = show - len(samples)
            samples += [(t, r.text, r.confidence) for t, r in zip(batch.labels[: max(free, 0)], readings)]
        results[name] = SetResult()
        for other in dist.gather(result):
            results[name].add(other)
    model.train(training)
    return Evaluation(results, samples)


def as_row(evaluation: Evaluation) -> dict[str, object]:
    """Plain figures for metrics.jsonl: accuracy by set and in total, 1-NED, confidence."""
    total = evaluation.total
    row: dict[str, object] = {
        "accuracy": round(total.accuracy, 4),
        "one_minus_ned": round(total.mean_ned, 4),
        "confidence": round(float(np.divide(total.confidence, max(total.words, 1))), 5),
        "sets": {name: round(result.accuracy, 4) for name, result in evaluation.sets.items()},
    }
    if total.heads:
        row["heads"] = {name: round(value, 4) for name, value in evaluation.heads.items()}
    return row
