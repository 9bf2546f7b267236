"""Word data sets: which LMDB folders, which samples of them, and one sample as pixels, label and mask.

A sample that cannot be read is never replaced by another one: it is excluded from its batch, reported in `Batch.bad`,
listed in `bad_samples.csv`, and too large a share of such samples stops the run (`BadSamples`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.bad import BadSample
from common.data.decode import (
    BadImage,
    decode_resized,
    decode_rgb,
    pad_right,
    resize_bicubic,
    resize_keeping_ratio,
)
from common.data.label_index import LabelIndex, LabelRules, index_labels
from common.data.lmdb import WordLmdb
from common.data.masks import MaskSource, fit_mask
from common.data.sources import KINDS, WordSource, find_sources, open_words
from common.errors import UserError
from common.text.coverage import Coverage, shown_characters, summed

Augment = Callable[..., object]  # (image uint8 [H, W, 3], rng, mask) -> image or (image, mask)
NATIVE, RESIZED = "native", "resized"


class Sample(NamedTuple):
    """`image` uint8 [H, W, 3] RGB; normalised `label`; `index` in the data set; `mask` [H, W] or None:
    uint8 of 0/1, or float32 (see `masks.fit_mask`).
    """

    image: np.ndarray
    label: str
    index: int
    mask: np.ndarray | None


@dataclass
class ArrayBatch:
    """Samples of one batch in the order asked for, less the bad ones: images uint8 [B, H, W, 3], masks uint8 or
    float32 [B, H, W] or None; `masks_missing`: stored masks that were not there or unreadable.
    """

    images: np.ndarray
    labels: list[str]
    indices: np.ndarray
    masks: np.ndarray | None = None
    bad: list[BadSample] = field(default_factory=list)
    masks_missing: int = 0


@dataclass(frozen=True)
class Request:
    """What a worker is asked for: dataset indices int64 [B], the epoch each belongs to, the run's seed."""

    indices: np.ndarray
    epochs: np.ndarray
    seed: int


def discover(root: str | Path, select: Sequence[str] | None = None) -> list[Path]:
    """The word sets at or below `root` (see `common.data.sources`), sorted; `select` keeps those with one of these path
    components.

    Components are those below `root` and the last of `root` itself; `/` and None keep all, and a name with slashes
    (`MJ/MJ_train`) matches consecutive components. Raises `UserError` when `root` is missing or nothing is left.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root}: no such folder: give the folder that holds the LMDB folders")
    folders = find_sources(root)
    if not folders:
        raise UserError(f"{root}: no LMDB (data.mdb) or other word set below it: give the folder that holds {KINDS}")
    if select is None or "/" in select:
        return folders
    chosen = [folder for folder in folders if any(_has_component(folder, root, name) for name in select)]
    if not chosen:
        names = sorted({part for folder in folders for part in folder.relative_to(root).parts})
        raise UserError(f"{root}: no LMDB named {' or '.join(select)}; found: {', '.join(names[:30]) or root.name}")
    return chosen


def source_names(root: str | Path, text: str) -> list[str]:
    """The names of `--select_data`, which joins them by "-": of names that hold a hyphen themselves the longest that
    exist below `root` stay whole (`MJ-ST-Union14M-L` is MJ, ST, Union14M-L). Parts that match no folder stay single.
    """
    parts, root = text.split("-"), Path(root)
    folders = find_sources(root) if "-" in text and root.is_dir() else []
    names: list[str] = []
    while parts:
        whole = ["-".join(parts[:count]) for count in range(len(parts), 1, -1)]
        exists = (name for name in whole if any(_has_component(folder, root, name) for folder in folders))
        names.append(next(exists, parts[0]))
        del parts[: names[-1].count("-") + 1]
    return names


def discover_groups(root: str | Path, names: Sequence[str]) -> list[list[Path]]:
    """`discover` for every name by itself, in the given order: the sources of a `RatioMix`."""
    return [discover(root, [name]) for name in names]


def _has_component(folder: Path, root: Path, name: str) -> bool:
    parts = (root.resolve().name, *folder.relative_to(root).parts)
    wanted = tuple(part for part in name.split("/") if part)
    return any(parts[start : start + len(wanted)] == wanted for start in range(len(parts) - len(wanted) + 1))


class WordDataset:
    """Map-style data set over the concatenation of word LMDBs, filtered; indices are 0 .. len-1 in file order.

    paths: LMDB folders or other word sets (see `common.data.sources`), in order. image_size: (h, w) of the samples.
    max_length, keep, drop_empty, charset, on_unsupported, measure, labels, missing_label, exclude: see `LabelRules`.
    augment: `(image, rng, mask) -> image | (image, mask)`, or a list with one for each LMDB; applied at `augment_at`
    "native" (before the resize; SIGA R and S, DiG) or "resized" (SIGA T, MGP-STR); `rng` is a
    Generator made from (seed, epoch, index), so nothing else decides what it draws.
    masks: a `MaskSource` or None. usage: number in (0, 1] to keep that share of every LMDB's first samples, or an
    int > 1 to keep at most that many samples in all. decode_truncated: accept images that break off (DiG).
    pad: keep the aspect ratio and fill up with black on the right (`--PAD`), after an augmentation of the resized
    picture; not together with masks.
    Safe to fork, spawn and pickle. Raises `UserError` for unusable LMDBs and when no sample is left.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        image_size: tuple[int, int] = (32, 128),
        max_length: int | None = 25,
        keep: Callable[[str], str] | None = None,
        augment: Augment | Sequence[Augment] | None = None,
        augment_at: str = NATIVE,
        masks: MaskSource | None = None,
        usage: float = 1.0,
        decode_truncated: bool = False,
        pad: bool = False,
        **rules: object,
    ) -> None:
        if augment_at not in (NATIVE, RESIZED):
            raise ValueError(f"augment_at is {augment_at!r}, expected {NATIVE!r} or {RESIZED!r}")
        if pad and masks is not None:
            raise ValueError("masks are made for pictures that fill the input: no pad with them")
        self.lmdbs = [open_words(path) for path in paths]
        self.image_size, self.augment, self.augment_at, self.masks = image_size, augment, augment_at, masks
        self.decode_truncated, self.pad = decode_truncated, pad
        self.index: LabelIndex = index_labels(self.lmdbs, LabelRules(max_length=max_length, keep=keep, **rules), usage)
        if not len(self.index):
            told = (
                ", ".join(f"{count} {what}" for what, count in self.index.counts.items() if count) or "they are empty"
            )
            lost = summed(self.index.coverage).characters
            fix = f"; the charset has none of {shown_characters(lost)}: give that of the labels" if lost else ""
            raise UserError(f"{', '.join(str(path) for path in paths)}: no usable sample ({told}){fix}")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sizes(self) -> list[int]:
        """Samples kept of every path, in order."""
        return self.index.sizes

    @property
    def counts(self) -> Counter[str]:
        """How many samples were stored, kept, and skipped for which reason."""
        return self.index.counts

    def coverage(self) -> dict[str, Coverage]:
        """What normalisation and charset do to the labels of every path; empty where nothing is normalised."""
        names = [str(words.path) for words in self.lmdbs]
        return dict(zip(names, self.index.coverage)) if self.index.coverage else {}

    @property
    def index_bad(self) -> list[BadSample]:
        """Samples whose label was missing or unreadable when the labels were indexed."""
        return self.index.bad

    @property
    def fingerprint(self) -> str:
        """What a resumed run recognises its data by: number of samples, and a checksum of labels and positions."""
        return f"{len(self)} samples, {self.index.fingerprint()}"

    def label(self, index: int) -> str:
        """The normalised label of sample `index`."""
        return self.index.label(index)

    def location(self, index: int) -> tuple[WordLmdb | WordSource, int]:
        """The LMDB or other word set of sample `index` and its 0-based number in there."""
        return self.lmdbs[self.index.source[index]], int(self.index.number[index])

    def __getitem__(self, index: int) -> Sample:
        """One sample as in epoch 0 of seed 0. Raises `BadImage` when it cannot be read."""
        return self.sample(range(len(self))[index], epoch=0, seed=0)

    def __getitems__(self, request: Request | Sequence[int]) -> ArrayBatch:
        """The samples of a batch; the bad ones are skipped and reported. Read in file order, returned in the order
        asked for.
        """
        if not isinstance(request, Request):
            indices = np.asarray(request, dtype=np.int64)
            request = Request(indices, np.zeros(len(indices), dtype=np.int64), 0)
        size = len(request.indices)
        images = np.empty((size, *self.image_size, 3), dtype=np.uint8)
        masks = None if self.masks is None else np.empty((size, *self.image_size), dtype=self.masks.dtype)
        good, bad, missing = np.ones(size, dtype=bool), [], self._masks_missing
        for row in np.argsort(request.indices, kind="stable"):
            index = int(request.indices[row])
            try:
                image, mask = self._pixels(index, int(request.epochs[row]), request.seed)
            except BadImage as error:
                good[row] = False
                words, number = self.location(index)
                bad.append(BadSample(str(words.path), number + 1, str(error)))
                continue
            images[row] = image
            if masks is not None:
                masks[row] = mask
        indices = request.indices
        if bad:
            images, indices, masks = images[good], indices[good], None if masks is None else masks[good]
        labels = [self.index.label(int(i)) for i in indices]
        return ArrayBatch(images, labels, indices, masks, bad, self._masks_missing - missing)

    @property
    def _masks_missing(self) -> int:
        """Stored masks that this process has missed so far."""
        return getattr(self.masks, "missing", 0)

    def sample(self, index: int, epoch: int, seed: int) -> Sample:
        """Sample `index` as epoch `epoch` of seed `seed` sees it. Raises `BadImage`."""
        image, mask = self._pixels(index, epoch, seed)
        return Sample(image, self.index.label(index), index, mask)

    def image(self, index: int) -> np.ndarray:
        """The stored picture at its own size, uint8 [H, W, 3], not augmented. Raises `BadImage`."""
        return decode_rgb(self._bytes(index), truncated=self.decode_truncated)

    def _bytes(self, index: int) -> bytes:
        words, number = self.location(index)
        try:
            return words.image_bytes(number)
        except KeyError as error:
            raise BadImage(error.args[0]) from None

    def _pixels(self, index: int, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        data = self._bytes(index)
        if self.pad:
            return self._padded(data, index, epoch, seed), None
        native_needed = self.masks is not None or (self.augment is not None and self.augment_at == NATIVE)
        if not native_needed:
            image = decode_resized(data, self.image_size, truncated=self.decode_truncated)
            if self.augment is not None:
                image, _ = self._augmented(image, None, index, epoch, seed)
            return image, None
        image, mask = decode_rgb(data, truncated=self.decode_truncated), None
        if self.masks is not None:
            mask = self.masks.native(image, *self.location(index))
        if self.augment is not None and self.augment_at == NATIVE:
            image, mask = self._augmented(image, mask, index, epoch, seed)
        image = resize_bicubic(image, self.image_size)
        if self.masks is not None:
            mask = fit_mask(self.masks.resized(image) if mask is None else mask, self.image_size, self.masks.form)
        if self.augment is not None and self.augment_at == RESIZED:
            image, mask = self._augmented(image, mask, index, epoch, seed)
            mask = None if mask is None else fit_mask(mask, self.image_size, self.masks.form)
        return image, mask

    def _padded(self, data: bytes, index: int, epoch: int, seed: int) -> np.ndarray:
        image = decode_rgb(data, truncated=self.decode_truncated)
        if self.augment is not None and self.augment_at == NATIVE:
            image, _ = self._augmented(image, None, index, epoch, seed)
        image = resize_keeping_ratio(image, self.image_size)
        if self.augment is not None and self.augment_at == RESIZED:
            image, _ = self._augmented(image, None, index, epoch, seed)
        return pad_right(image, self.image_size[1])

    def _augmented(self, image: np.ndarray, mask: np.ndarray | None, index: int, epoch: int, seed: int):
        rng = sample_rng(seed, epoch, index)
        augment = self.augment if callable(self.augment) else self.augment[self.index.source[index]]
        if mask is None:
            return augment(image, rng), None
        return augment(image, rng, mask)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch: a function of the three numbers alone (SFC64 seeded with them)."""
    return np.random.Generator(np.random.SFC64([seed, epoch, index]))
