"""Accuracy of each granularity and of the fusion over word sets (spec sections 5.5 and 7)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from common.data.bad import BadSample
from common.data.loader import Batch
from common.errors import UserError
from common.models.images import to_float_nchw
from common.train.optim import Precision
from projects.mgpstr.label_codes import GRANULARITIES, LabelCodes
from projects.mgpstr.model.fusion import Fused, decode_batch
from projects.mgpstr.model.mgp_str import Reading

COLUMNS = (*GRANULARITIES, "fused")


@dataclass
class Evaluation:
    """Sums over samples. `correct` by granularity and "fused"; `won`: how often each granularity gave the fused answer.

    `loss_sum` adds the batches' character losses; `seconds` is the time of the model alone, without loading, copying
    and decoding; `samples`: truth, character prediction and its confidence of up to five words of the last batch;
    `errors`: truth and candidates of wrong words; `bad`: what could not be read and is in no figure; `source`: lines
    about the data for the log.
    """

    words: int = 0
    correct: Counter[str] = field(default_factory=Counter)
    won: Counter[str] = field(default_factory=Counter)
    loss_sum: float = 0.0
    batches: int = 0
    seconds: float = 0.0
    samples: list[tuple[str, str, float]] = field(default_factory=list)
    errors: list[tuple[str, ...]] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)
    source: str = ""

    def accuracy(self, column: str) -> float:
        """Words read exactly, in %."""
        return 100.0 * self.correct[column] / self.words if self.words else 0.0

    @property
    def accuracies(self) -> dict[str, float]:
        """% of char, bpe, wp and fused; heads that the model has not are 0, as published."""
        return {column: self.accuracy(column) for column in COLUMNS}

    @property
    def best_accuracy(self) -> float:
        """The best of the four, by which a checkpoint is kept."""
        return max(self.accuracies.values())

    @property
    def loss(self) -> float:
        """Mean over batches of the character loss."""
        return self.loss_sum / self.batches if self.batches else 0.0

    def add(self, other: Evaluation) -> None:
        for name in ("words", "loss_sum", "batches", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.correct.update(other.correct)
        self.won.update(other.won)
        self.errors += other.errors
        self.bad += other.bad

    def judge(self, label: str, fused: Fused) -> None:
        """Count one word; predictions are compared with the normalised label, a fused None is wrong."""
        self.words += 1
        texts = {name: decoded.text for name, decoded in fused.candidates.items()} | {"fused": fused.text}
        self.correct.update(name for name, text in texts.items() if text == label)
        self.won.update([fused.winner or "none"])
        if fused.text != label:
            self.errors.append((label, *(str(texts.get(name, "")) for name in COLUMNS), f"{fused.confidence:.4f}"))


@torch.no_grad()
def read_batch(model: torch.nn.Module, codes: LabelCodes, images: torch.Tensor) -> tuple[list[Fused], Reading]:
    """Read uint8 images [B, H, W, 3] on the model's device."""
    reading = model.read(to_float_nchw(images))
    return fuse(codes, reading), reading


def fuse(codes: LabelCodes, reading: Reading) -> list[Fused]:
    """The texts of what was read, one for each picture."""
    ids = {name: decoded.ids.cpu().numpy() for name, decoded in reading.decoded.items()}
    probs = {name: decoded.probs.float().cpu().numpy() for name, decoded in reading.decoded.items()}
    return decode_batch(codes, ids, probs)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def character_targets(codes: LabelCodes, labels: list[str], device: torch.device) -> torch.Tensor:
    """Character targets [B, T]; labels that do not fit have no target."""
    short = [label if len(label) <= codes.char.max_length else "" for label in labels]
    targets = torch.from_numpy(codes.char.encode(short)[0])
    for row, (label, kept) in enumerate(zip(labels, short)):
        if label != kept:
            targets[row] = 0
    return targets.to(device)


def evaluate(
    model: torch.nn.Module, codes: LabelCodes, batches: Iterable[Batch], device: torch.device, amp: str = "no"
) -> Evaluation:
    """Read all batches in eval mode; the model's mode is put back.

    `batches` may have a register `bad` of what could not be read, as a `WordLoader` has. Raises `UserError` where
    nothing could be read.
    """
    result, training = Evaluation(), model.training
    model.eval()
    for batch in batches:
        images = to_float_nchw(batch.images.to(device, non_blocking=True))
        targets = character_targets(codes, batch.labels, device)
        with Precision(amp, device).autocast():
            began = clock(device)
            reading = model.read(images)
            result.seconds += clock(device) - began
            if bool((targets != 0).any()):
                result.loss_sum += float(model.character_loss(reading, targets))
        fused = fuse(codes, reading)
        result.batches += 1
        for label, one in zip(batch.labels, fused):
            result.judge(label, one)
        shown = [one.candidates["char"] for one in fused[:5]]
        result.samples = [(label, one.text, one.confidence) for label, one in zip(batch.labels, shown)]
    result.bad = batches.bad.rows() if hasattr(batches, "bad") else []
    model.train(training)
    if not result.words:
        raise UserError("evaluation: none of its pictures can be read; `strlab doctor FOLDER` says why")
    return result


def total(results: dict[str, Evaluation]) -> Evaluation:
    """All sets together (each word counts once: the published average)."""
    together = Evaluation()
    for result in results.values():
        together.add(result)
    return together
