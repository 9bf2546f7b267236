"""Reading whole sets: the published figures next to the three protocols, every image once (section 4.3)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from common.data.loader import Batch, reading_loader
from common.files import write_text
from common.metrics.accuracy import Row, Scores
from common.metrics.papers import dig_f_measure, dig_normalise, dig_scores
from common.text.codecs import EosPadUnkCodec
from common.text.coverage import empty_line
from common.train.checkpoint import write_json
from common.train.distributed import Dist
from common.train.log import EpochLog
from projects.dig import data
from projects.dig.model.beam import beam_search, published_beam_search
from projects.dig.model.losses import valid
from projects.dig.model.recogniser import Recogniser

SIX = ("IIIT5K_3000", "svt_647", "IC13_857", "ic15_1811", "svt_p_645", "cute80_288")
ELEVEN = (*SIX, "cocotextval_9896", "ctw_1572", "totaltext_2201", "ost_heavy", "ost_weak")
AVERAGED = {"six sets": SIX, "eleven sets": ELEVEN}


@dataclass
class Words:
    """What was read in one set: one entry a word."""

    indices: list[int] = field(default_factory=list)
    predictions: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of words that fit the decoder only
    unlabelled: int = 0  # bad labels of the whole set
    unread: int = 0  # bad images among those that this process was to read

    @property
    def bad(self) -> int:
        """Samples that are in no figure."""
        return self.unlabelled + self.unread

    def merge(self, others: Sequence[Words]) -> Words:
        """The words of all processes, this one's among the `others`, in the order of the set."""
        merged = Words(unlabelled=self.unlabelled, unread=sum(other.unread for other in others))
        rows = sorted(
            row for words in others for row in zip(words.indices, words.predictions, words.labels, words.confidences)
        )
        for row in rows:
            for column, value in zip((merged.indices, merged.predictions, merged.labels, merged.confidences), row):
                column.append(value)
        merged.losses = [loss for words in others for loss in words.losses]
        return merged


@dataclass
class SetResult:
    """Published figures of one set: shares in [0, 1] and the mean loss; `fitting` leaves words above the length out."""

    name: str
    path: str
    words: Words
    accuracy: float
    f_measure: float
    loss: float
    fitting: tuple[int, float]


@dataclass(frozen=True)
class Evaluator:
    """Reads sets with one model.

    Attributes:
        codec: of the model.
        image_size: (height, width) of its input.
        batch_size: images at a time.
        share: the ranks of `dist` share the words (`--dist_eval`), each read once; else every rank reads all.
        lower: lower-case the labels (`--voc_type LOWERCASE`).
        beam_width: 0 reads greedily.
        legacy_beam_search, legacy_items, legacy_percent, legacy_empty: faults of the published code, see the README.
    """

    dist: Dist
    codec: EosPadUnkCodec
    image_size: tuple[int, int]
    batch_size: int = 96
    workers: int = 0
    share: bool = False
    lower: bool = False
    beam_width: int = 0
    legacy_beam_search: bool = False
    legacy_items: bool = False
    legacy_percent: bool = False
    legacy_empty: bool = False

    def evaluate(self, model: Recogniser, path: str | Path, name: str = "") -> SetResult:
        """Read one set and print its published lines. Collective where the ranks share the words."""
        path = Path(path)
        dataset = data.words(
            [path],
            self.codec,
            self.image_size,
            lower=self.lower,
            all_lengths=True,
            legacy_items=self.legacy_items,
        )
        for source, coverage in dataset.coverage().items():
            if coverage.foreign:
                print(coverage.line(source))
        training = model.training
        model.eval()
        words = Words(unlabelled=len(dataset.index_bad))
        shared = self.share and self.dist.distributed
        rank, world = (self.dist.rank, self.dist.world_size) if shared else (0, 1)
        place = {"rank": rank, "world_size": world}
        batches = reading_loader(dataset, self.batch_size, self.workers, **place, pin_memory=False)
        log = EpochLog("Test:", every=10, stamp=True)
        for _, batch in log.over(iter(batches), len(batches)):
            log.add(len(batch), **self._read(model, batch, words))
        words.unread = len(batches.bad) - words.unlabelled
        model.train(training)
        if shared:
            words = words.merge(self.dist.gather(words))
        return self._summary(name or path.name, path, words)

    @torch.no_grad()
    def _read(self, model: Recogniser, batch: Batch, words: Words) -> dict[str, float]:
        """Add the words of a batch to `words`; returns the batch's meters."""
        images = data.normalise(batch.images.to(self.dist.device, non_blocking=True))
        memory = model.memory(images)
        ids, confidences = self._decode(model, memory)
        words.indices += batch.indices.tolist()
        predictions = [row.text for row in self.codec.decode(ids.cpu().numpy())]
        losses = self._losses(model, memory, batch.labels)
        words.predictions += predictions
        words.labels += batch.labels
        words.confidences += confidences.tolist()
        words.losses += losses
        shown = {"loss": sum(losses) / len(losses)} if losses else {}
        pairs = [(p, g) for p, g in zip(predictions, batch.labels) if self.legacy_empty or dig_normalise(g)]
        if pairs:
            scores = dig_scores(*zip(*pairs))
            shown |= {"acc": scores.accuracy, "recognition_fmeasure": scores.f_measure}
        return shown

    def _decode(self, model: Recogniser, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Ids `[B, max_len]` and confidences `[B]`, by the search that the flags ask for."""
        width = self.beam_width
        if width and self.legacy_beam_search:
            ids = published_beam_search(model, memory, width)
            return ids, torch.ones(len(ids))
        if width:
            ids, scores = beam_search(model, memory, width)
            return ids, scores.exp()
        reading = model.read_memory(memory)
        best = reading.scores.max(-1).values
        # the product up to and including the end; steps not taken have no probability
        ended = (reading.ids == model.end).cumsum(1)
        counted = (ended == 0) | ((ended == 1) & (reading.ids == model.end))
        return reading.ids, torch.where(counted & (best > 0), best, 1).prod(1)

    def _losses(self, model: Recogniser, memory: Tensor, labels: list[str]) -> list[float]:
        """Cross-entropy of each word that fits the decoder under teacher forcing (the published number is not one)."""
        longest = data.longest_word(self.codec.max_length)
        fitting = [row for row, label in enumerate(labels) if len(label) <= longest]
        if not fitting:
            return []
        targets, lengths = data.targets(self.codec, [labels[row] for row in fitting], memory.device)
        log_p = model.teach(memory[fitting], targets, lengths).scores.float().log_softmax(-1)
        nll = -log_p.gather(2, targets[..., None])[..., 0]
        return (nll * valid(targets, lengths)).sum(1).tolist()

    def _summary(self, name: str, path: Path, words: Words) -> SetResult:
        """The figures of a set, with its lines on the console in the published form."""
        # the published metric: letters and digits alone, case ignored, on both sides
        pairs = [(dig_normalise(p), dig_normalise(g)) for p, g in zip(words.predictions, words.labels)]
        # a label of which nothing is left is read right by reading nothing; published, that counts
        counted = [self.legacy_empty or bool(truth) for _, truth in pairs]
        labels = [label for label, use in zip(words.labels, counted) if use]
        empty, pairs = len(pairs) - len(labels), [pair for pair, use in zip(pairs, counted) if use]
        count, right = max(len(pairs), 1), [p == g for p, g in pairs]
        longest = data.longest_word(self.codec.max_length)  # longer words can never be read right
        fitting = [hit for hit, label in zip(right, labels) if len(label) <= longest]
        result = SetResult(
            name,
            str(path),
            words,
            accuracy=sum(right) / count,
            f_measure=sum(dig_f_measure(p, g) for p, g in pairs) / count,
            loss=sum(words.losses) / max(len(words.losses), 1),
            fitting=(len(fitting), sum(fitting) / max(len(fitting), 1)),
        )
        print(
            f"* {path}: {len(pairs)} images, Acc {result.accuracy:.4f} loss {result.loss:.4f} "
            f"Rec_fmeasure {result.f_measure:.4f}"
        )
        shown = f"{result.accuracy:.4f}" if self.legacy_percent else f"{100 * result.accuracy:.2f}"
        print(f"Accuracy of the network on the {len(pairs)} test images: {shown}%", flush=True)
        if len(fitting) < len(pairs):
            print(
                f"{len(pairs) - len(fitting)} words are longer than the decoder; without them: {result.fitting[1]:.2%}"
            )
        if empty:
            print(empty_line(str(path), empty))
        if words.bad:
            print(f"{words.bad} images could not be read and are in no figure")
        return result


def sets_of(first: Path, others: Sequence[str]) -> list[tuple[str, Path]]:
    """Names and folders of the set `first` and of those of the `others` next to it that exist."""
    found = [(first.name, first)]
    for name in others:
        path = first.parent / name
        if path.is_dir() and path != first:
            found.append((name, path))
        elif path != first:
            print(f"{path}: no such set, skipped")
    return found


def scores_of(results: Sequence[SetResult]) -> Scores:
    """All results under the protocols of 36, 62 and 94 characters."""
    scores = Scores()
    for result in results:
        words = result.words
        scores.add(result.name, words.predictions, words.labels, words.confidences)
        scores.add_bad(result.name, words.bad)
    return scores


def totals(results: Sequence[SetResult]) -> dict[str, float]:
    """The published accuracy over all sets and over the usual six and eleven, where all of them are there, in percent.

    Each weighted by images and plain; the published 85.21 is most likely that of eleven sets, weighted.
    """
    by_name = {result.name.casefold(): result for result in results}
    groups = {f"{len(results)} sets": list(results)}
    for title, names in AVERAGED.items():
        members = [by_name[name.casefold()] for name in names if name.casefold() in by_name]
        if len(members) == len(names):
            groups[title] = members
    figures = {}
    for title, members in groups.items():
        images = sum(len(r.words.labels) for r in members)
        weighted = sum(r.accuracy * len(r.words.labels) for r in members) / max(images, 1)
        figures[f"{title}, weighted"] = 100 * weighted
        figures[f"{title}, plain mean"] = 100 * sum(r.accuracy for r in members) / len(members)
    return figures


def report(results: Sequence[SetResult], out: Path) -> None:
    """Print the table of all sets and totals; write `eval.json` and `predictions.csv`."""
    scores = scores_of(results)
    print(f"{'set':<20} {'images':>7} {'published':>9} {'36':>7} {'62':>7} {'94':>7} {'1-NED':>7} {'conf.':>6}")
    for row, published in zip(scores.rows(), (100 * result.accuracy for result in results)):
        print_row(row, published)
    figures = totals(results)
    print_row(scores.weighted(), figures[f"{len(results)} sets, weighted"])
    print_row(scores.unweighted(), figures[f"{len(results)} sets, plain mean"])
    for title, value in figures.items():
        print(f"{title}: {value:.2f}% (published metric: letters and digits, case ignored, empty labels count)")
    write_json(out / "eval.json", {"sets": [as_dict(result) for result in results], "totals": figures})
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["set", "number", "label", "prediction", "confidence", "correct"])
    for result in results:
        words = result.words
        for row in zip(words.indices, words.labels, words.predictions, words.confidences):
            right = dig_normalise(row[1]) == dig_normalise(row[2])
            writer.writerow([result.name, row[0] + 1, *row[1:3], f"{row[3]:.4f}", int(right)])
    write_text(out / "predictions.csv", table.getvalue())


def print_row(row: Row, published: float) -> None:
    """One line of the table, figures in percent."""
    protocols = " ".join(f"{row.accuracy[name]:7.2f}" for name in ("36", "62", "94"))
    print(
        f"{row.name:<20} {row.samples:>7} {published:>9.2f} {protocols} "
        f"{row.one_minus_ned['36']:7.2f} {row.confidence:6.1f}"
    )


def as_dict(result: SetResult) -> dict:
    """One set as plain data, accuracies in percent."""
    return {
        "name": result.name,
        "path": result.path,
        "images": len(result.words.labels),
        "accuracy": 100 * result.accuracy,
        "f_measure": result.f_measure,
        "loss": result.loss,
        "fitting_images": result.fitting[0],
        "fitting_accuracy": 100 * result.fitting[1],
        "unreadable": result.words.bad,
    }
