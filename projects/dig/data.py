"""DiG's data sets: labelled words for fine-tuning and evaluation, pairs of views for pre-training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data.decode import BadImage, resize_bicubic
from common.data.label_index import LabelIndex
from common.data.words import ArrayBatch, Request, WordDataset, sample_rng
from common.errors import UserError
from common.models.images import to_float_nchw
from common.text.codecs import EosPadUnkCodec

Augment = Callable[..., np.ndarray]
HALF = (0.5, 0.5, 0.5)  # mean and deviation of every DiG model


def normalise(images: Tensor) -> Tensor:
    """uint8 `[B, H, W, 3]` -> float `[B, 3, H, W]` in [-1, 1]."""
    return to_float_nchw(images, HALF, HALF)


def longest_word(max_len: int) -> int:
    """Characters that `--max_len` steps can hold: the published rule asks for len + 1 < max_len."""
    return max_len - 2


def first_samples(dataset: WordDataset, number: float) -> None:
    """`--num_samples`: keep of every LMDB the first so many samples (> 1), or that share of them (<= 1)."""
    keep_first(dataset, [size * number if number <= 1 else number for size in map(len, dataset.lmdbs)])


def keep_first(dataset: WordDataset, limits: Sequence[float]) -> None:
    """Keep the stored samples whose number in their LMDB is below that LMDB's limit (cut to an integer)."""
    index, limits = dataset.index, np.asarray(limits, dtype=float)
    kept = np.flatnonzero(index.number < np.trunc(limits)[index.source])
    if not len(kept):
        raise UserError(f"{dataset.lmdbs[0].path}: no sample is left of it; give a larger number of samples")
    if len(kept) < len(index):
        labels = [index.label(int(i)).encode("utf-8", "surrogatepass") for i in kept]
        sources, numbers = index.source[kept], index.number[kept]
        dataset.index = LabelIndex(labels, sources, numbers, index.counts, index.bad, len(limits), index.coverage)


class PublishedItems(WordDataset):
    """The published rule for samples that cannot be used (`--legacy-items`): item i stands for item i + 2, and so on.

    Nothing is skipped, so a neighbour may be counted twice. Raises `UserError` where the rule runs over the end.
    """

    def __init__(self, paths: Sequence[str | Path], *, max_length: int, **options: object) -> None:
        super().__init__(paths, max_length=None, drop_empty=False, **options)
        self.longest = max_length

    def stands_for(self, index: int) -> int:
        """The sample that the published code returns for `index`."""
        first = index
        while index < len(self):
            if len(self.label(index)) <= self.longest:
                try:
                    self.image(index)
                    return index
                except BadImage:
                    print(f"Corrupted image for {index + 1}")
            index += 2
        words, number = self.location(first)
        raise UserError(
            f"--legacy-items: {words.path} {number + 1}: no sample can stand for it: every second one from it on is "
            "too long or cannot be read, where the published code fails too; leave the flag out"
        )

    def __getitems__(self, request: Request | Sequence[int]) -> ArrayBatch:
        """The samples that stand for those asked for."""
        if not isinstance(request, Request):
            request = Request(np.asarray(request), np.zeros(len(request), dtype=np.int64), 0)
        indices = np.asarray([self.stands_for(int(index)) for index in request.indices])
        return super().__getitems__(Request(indices, request.epochs, request.seed))


class PairDataset(WordDataset):
    """Two views of every image, one above the other: uint8 `[2 * H, W, 3]`; labels are not read.

    Args:
        paths: LMDB folders, in order.
        second: `(image uint8 [h, w, 3], rng) -> uint8 [H, W, 3]`, makes the second view of the picture as stored.
        image_size: (H, W) of each view.
        per_lmdb: at most so many first samples of each LMDB.
        exclude: `--exclude`, a list of pictures that are no part of the set.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        second: Augment,
        image_size: tuple[int, int] = (32, 128),
        per_lmdb: float = math.inf,
        exclude: str = "",
    ) -> None:
        size = (2 * image_size[0], image_size[1])
        super().__init__(paths, image_size=size, labels=False, decode_truncated=True, exclude=exclude or None)
        self.view_size, self.second = image_size, second
        keep_first(self, [per_lmdb] * len(self.lmdbs))

    def _pixels(self, index: int, epoch: int, seed: int) -> tuple[np.ndarray, None]:
        rng, image = sample_rng(seed, epoch, index), self.image(index)
        return np.concatenate([resize_bicubic(image, self.view_size), self.second(image, rng)]), None


def views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Both views, float `[B, 3, H, W]` in [-1, 1], of a batch of pairs uint8 `[B, 2 * H, W, 3]`."""
    first, second = normalise(images).chunk(2, dim=2)
    return first.contiguous(), second.contiguous()


def words(
    paths: Sequence[str | Path],
    codec: EosPadUnkCodec,
    image_size: tuple[int, int],
    *,
    lower: bool = False,
    augment: Augment | None = None,
    number: float = math.inf,
    all_lengths: bool = False,
    legacy_items: bool = False,
    exclude: str = "",
) -> WordDataset:
    """Labelled words.

    Args:
        paths: LMDB folders, in order.
        codec: its length decides which words are too long.
        image_size: (H, W).
        lower: lower-case the labels (`--voc_type LOWERCASE`).
        augment: applied to the image at its own size.
        number: `--num_samples`.
        all_lengths: keep words that are too long for the decoder (evaluation counts them as they are).
        exclude: `--exclude`, a list of words that are no part of the set.
        legacy_items: the published replacement rule instead of leaving unusable samples out.
    """
    longest = longest_word(codec.max_length)
    kind = PublishedItems if legacy_items else WordDataset
    rules = {} if legacy_items else {"drop_empty": False}
    dataset = kind(
        paths,
        image_size=image_size,
        max_length=None if all_lengths and not legacy_items else longest,
        keep=str.lower if lower else None,
        charset=codec.charset,  # what it does not have is counted and becomes UNKNOWN, as published
        augment=augment,
        decode_truncated=True,
        exclude=exclude or None,
        **rules,
    )
    first_samples(dataset, number)
    return dataset


def targets(
    codec: EosPadUnkCodec, labels: Sequence[str], device: torch.device, trim: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids `[B, max_len]` and lengths `[B]` of labels that fit the codec.

    With `trim` the columns after the longest word are cut off. They change no loss, as no position sees a later one
    and none of them is counted, and cost as much as the others.
    """
    ids, lengths = codec.encode(labels)
    if trim:
        ids = ids[:, : int(lengths.max(initial=1))]
    return torch.from_numpy(ids).to(device, non_blocking=True), torch.from_numpy(lengths).to(device, non_blocking=True)
