"""Batches: seeded samplers that can be resumed exactly, ratio mixing, and a loader whose result no worker count
changes.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from common.data.bad import BadSample, BadSamples
from common.data.words import ArrayBatch, Request, WordDataset
from common.errors import UserError

SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Batch:
    """images uint8 [B, H, W, 3]; normalised labels; dataset indices int64 [B]; masks [B, H, W] or None: uint8 of 0/1,
    or float32 where they are cut later; bad samples skipped; how many of the masks stand in for missing ones.
    """

    images: torch.Tensor
    labels: list[str]
    indices: torch.Tensor
    masks: torch.Tensor | None = None
    bad: list[BadSample] = field(default_factory=list)
    masks_missing: int = 0
    weight: float = 1.0  # 0 for a stand-in: no sample of the batch can be read, see `word_loader`

    def __len__(self) -> int:
        return len(self.labels)

    def full(self, size: int) -> torch.Tensor:
        """Images of exactly `size` rows: unreadable samples have left the batch, which is filled up from its beginning.
        Every process must bring the same number of rows to a contrast that is gathered."""
        images = self.images
        return images if len(images) == size else images[torch.arange(size) % len(images)]

    def pin_memory(self) -> Batch:
        """Page-locked copies, so that `.to(device, non_blocking=True)` overlaps with work."""
        self.images, self.indices = self.images.pin_memory(), self.indices.pin_memory()
        self.masks = None if self.masks is None else self.masks.pin_memory()
        return self


class Place(NamedTuple):
    """Which batch: `epoch` and `position` (batches of that epoch already given)."""

    epoch: int
    position: int


class Sampler(Protocol):
    """What `word_loader` asks of a sampler."""

    seed: int
    batch_size: int

    def requests(self, endless: bool) -> Iterator[Request]: ...

    def advance(self) -> None: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


def epoch_order(n: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The order of one epoch: a permutation of 0 .. n-1 that depends on (seed, epoch) alone; int64 [n]."""
    if not shuffle:
        return np.arange(n, dtype=np.int64)
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)


class SeededSampler:
    """Batches of indices of one epoch after another for one rank; owns (epoch, position).

    Rank r takes every `world_size`-th index of the epoch's order, starting at r. `even=True` gives every rank the
    same number of
    samples: the order is cut to a multiple of `world_size` under `drop_last`, else filled up from its beginning.
    `even=False` repeats and drops nothing (evaluation). Iterating yields int64 arrays from the current position to
    the end of the epoch and moves the position as it goes; at the end the next epoch begins. `state_dict` is exact
    between any two batches.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        even: bool = True,
    ) -> None:
        if n < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"n={n}, batch_size={batch_size}, rank={rank} of {world_size}: not positive, or a rank too high"
            )
        self.n, self.batch_size, self.seed, self.rank, self.world_size = n, batch_size, seed, rank, world_size
        self.shuffle, self.drop_last, self.even = shuffle, drop_last, even
        self.epoch = self.position = 0
        self._order: tuple[int, np.ndarray] | None = None
        if drop_last and not len(self):
            raise UserError(
                f"batch size {batch_size}: {n} samples on {world_size} processes fill no batch, and incomplete ones "
                "are dropped: use a smaller batch"
            )

    def __len__(self) -> int:
        """Batches of one epoch on this rank."""
        return self.samples // self.batch_size if self.drop_last else math.ceil(self.samples / self.batch_size)

    @property
    def samples(self) -> int:
        """Samples of one epoch on this rank, before `drop_last` cuts the last batch."""
        if not self.even:
            return len(range(self.rank, self.n, self.world_size))
        return self.n // self.world_size if self.drop_last else math.ceil(self.n / self.world_size)

    def batch(self, epoch: int, position: int) -> np.ndarray:
        """The indices of one batch, int64 [<= batch_size]."""
        start = position * self.batch_size
        return self._of_rank(epoch)[start : start + self.batch_size]

    def _of_rank(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(self.n, self.seed, epoch, self.shuffle)
            if self.even:
                order = np.resize(order, self.samples * self.world_size)
            self._order = (epoch, order[self.rank :: self.world_size])
        return self._order[1]

    def __iter__(self) -> Iterator[np.ndarray]:
        for request in self.requests(endless=False):
            self.advance()
            yield request.indices

    def requests(self, endless: bool) -> Iterator[Request]:
        """Requests from the current place on, to the end of the epoch or for ever; moves nothing."""
        epoch, position = self.epoch, self.position
        while True:
            for at in range(position, len(self)):
                indices = self.batch(epoch, at)
                yield Request(indices, np.full(len(indices), epoch, dtype=np.int64), self.seed)
            if not endless:
                return
            epoch, position = epoch + 1, 0

    def advance(self) -> None:
        """One batch was given out."""
        self.position += 1
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict:
        """Everything that decides the next batch, as plain values."""
        names = ("n", "batch_size", "seed", "world_size", "shuffle", "drop_last", "even", "epoch", "position")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where `state` was taken. Raises `UserError` when data, batch size, seed or number of
        processes differ.
        """
        _refuse_other(self.state_dict(), state, ("epoch", "position"))
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


def _refuse_other(mine: dict, saved: dict, free: Sequence[str]) -> None:
    for name in mine:
        if name not in free and mine[name] != saved.get(name):
            raise UserError(
                f"checkpoint: sampler {name} was {saved.get(name)}, now {mine[name]}: resume with the same data "
                "and options, or start anew from the weights"
            )


class RatioMix:
    """Batches mixed of several sources in fixed shares (MGP-STR, SIGA T), without end.

    The data set is the concatenation of the sources, `sizes[i]` samples each. Source i gives max(round(batch_size *
    ratios[i]), 1) samples (banker's rounding) to every batch, in source order; `usage` keeps the first int(size *
    usage) samples of each. A source that is at its end starts its next epoch, so its last share of an epoch may be
    short. `batch_size` is the sum afterwards.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        ratios: Sequence[float],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        usage: float = 1.0,
        shuffle: bool = True,
    ) -> None:
        if len(sizes) != len(ratios):
            raise UserError(f"batch ratio: {len(ratios)} shares for {len(sizes)} data sets: give one for each")
        used = [int(size * usage) for size in sizes]
        if min(used, default=0) < 1:
            raise UserError(f"data usage {usage}: sources of {list(sizes)} samples: one of them is left empty")
        self.shares = [max(round(batch_size * ratio), 1) for ratio in ratios]
        self.batch_size, self.seed, self.position = sum(self.shares), seed, 0
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        # A source's own seed keeps equal-sized sources from running through the same permutation.
        self.sources = [
            SeededSampler(size, share, seed + 1000003 * i, rank, world_size, shuffle)
            for i, (size, share) in enumerate(zip(used, self.shares))
        ]

    def request(self, position: int) -> Request:
        """Batch number `position` of the endless run."""
        indices, epochs = [], []
        for start, source in zip(self.starts, self.sources):
            epoch, at = divmod(position, len(source))
            indices.append(source.batch(epoch, at) + start)
            epochs.append(np.full(len(indices[-1]), epoch, dtype=np.int64))
        return Request(np.concatenate(indices), np.concatenate(epochs), self.seed)

    def requests(self, endless: bool = True) -> Iterator[Request]:
        """Requests from the current position on. A mix has no epoch, so `endless=False` is a ValueError."""
        if not endless:
            raise ValueError("a RatioMix has no end: word_loader(..., endless=True)")
        position = self.position
        while True:
            yield self.request(position)
            position += 1

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            request = self.request(self.position)
            self.advance()
            yield request.indices

    def advance(self) -> None:
        """One batch was given out."""
        self.position += 1

    def state_dict(self) -> dict:
        """Everything that decides the next batch, as plain values."""
        sizes, world = [source.n for source in self.sources], self.sources[0].world_size
        return {
            "sizes": sizes,
            "shares": self.shares,
            "seed": self.seed,
            "world_size": world,
            "position": self.position,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where `state` was taken. Raises `UserError` when sources, shares, seed or processes
        differ.
        """
        _refuse_other(self.state_dict(), state, ("position",))
        self.position = int(state["position"])


class _Requests:
    """The sampler as DataLoader sees it: one request a batch, starting from where the run stands at each `iter`."""

    def __init__(self, sampler: Sampler, endless: bool) -> None:
        self.sampler, self.endless = sampler, endless

    def __iter__(self) -> Iterator[Request]:
        return self.sampler.requests(self.endless)


def to_batch(arrays: ArrayBatch) -> Batch:
    masks = None if arrays.masks is None else torch.from_numpy(arrays.masks)
    images, indices = torch.from_numpy(arrays.images), torch.from_numpy(arrays.indices)
    return Batch(images, arrays.labels, indices, masks, arrays.bad, arrays.masks_missing)


class WordLoader:
    """Iterable of `Batch`; see `word_loader`. `bad` is the register of unreadable samples, `sampler` holds the place
    of the run, `masks_missing` counts the stored masks that were not there (each time one was wanted).
    """

    def __init__(
        self, dataset: WordDataset, sampler: Sampler, loader: DataLoader, bad: BadSamples, in_step: bool = False
    ) -> None:
        self.dataset, self.sampler, self.bad, self._loader, self.in_step = dataset, sampler, bad, loader, in_step
        self.masks_missing = 0

    def __len__(self) -> int:
        """Batches of one whole epoch on this rank (a mix of sources has none: TypeError)."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self.bad.start()
        for batch in self._fetched():
            self.sampler.advance()
            self.bad.add(batch.bad)
            self.masks_missing += batch.masks_missing
            if len(batch):
                yield batch
            elif self.in_step:
                yield self._stand_in(batch)

    def _stand_in(self, empty: Batch) -> Batch:
        """The first sample of the data set that can be read, with weight 0 and the indices of the empty batch."""
        for index in range(len(self.dataset)):
            request = Request(np.array([index], dtype=np.int64), np.zeros(1, dtype=np.int64), self.sampler.seed)
            batch = to_batch(self.dataset.__getitems__(request))
            if len(batch):
                return replace(batch, indices=empty.indices, bad=empty.bad, weight=0.0)
        raise UserError(f"{self._where()}: no sample of the data set can be read; look with `strlab doctor`")

    def _fetched(self) -> Iterator[Batch]:
        try:
            yield from self._loader
        except UserError as error:  # from a worker it arrives wrapped in that worker's traceback
            raise UserError(str(error).rstrip().rsplit("common.errors.UserError: ", 1)[-1]) from None
        except RuntimeError as error:
            raise self.lost_worker(error) from None

    def lost_worker(self, error: RuntimeError) -> UserError:
        """One line for a loader's process that has ended: which, why as far as that can be known, and what it read.

        torch reports it wherever the main process is just then, so the training loop asks too. Any other error is
        raised again as it is.
        """
        text = str(error)
        if not text.startswith("DataLoader worker"):
            raise error
        who = re.sub(r"\.\s.*", "", text.splitlines()[0]).replace("DataLoader worker", "loader process")
        if "Bus error" in text:
            fix = "a file was cut while it was read, or shared memory is full: copy the data again or use fewer workers"
        elif "Killed" in text:
            fix = "it was ended from outside, most often for lack of memory: use fewer workers or smaller batches"
        else:
            # torch does not always see the signal in time
            fix = (
                "it reported an error above, or was ended from outside, most often for lack of memory: "
                "use fewer workers or smaller batches"
            )
        return UserError(f"{who} {self._where()}: {fix}")

    def _where(self) -> str:
        """The batch that was awaited, by epoch, position and the key of its first sample."""
        request = next(self.sampler.requests(endless=True))
        words, number = self.dataset.location(int(request.indices[0]))
        return f"(awaiting the batch of {words.path} {number + 1}, epoch {request.epochs[0]})"


def word_loader(
    dataset: WordDataset,
    sampler: Sampler,
    workers: int = 0,
    *,
    endless: bool = False,
    bad: BadSamples | None = None,
    pin_memory: bool | None = None,
    prefetch: int = 2,
    start_method: str | None = None,
    in_step: bool = False,
) -> WordLoader:
    """Batches of `dataset` in `sampler`'s order, from the sampler's current place to the end of its epoch (or
    without end).

    The sampler's place moves when a batch is handed over, not when a worker fetches it, so a checkpoint taken after
    a step resumes with the next batch. Pixels, augmentation and order depend on (seed, epoch, index) alone: any
    number of workers and any start method (`fork`, `spawn`, `forkserver`) gives the same bytes. Workers persist over
    epochs. `pin_memory` None: with CUDA. A bad sample makes its batch shorter and is registered in `bad` (default: 1
    % of the data set, no file). A batch of nothing but bad samples is skipped or, with `in_step`, replaced by one
    readable sample of weight 0, so that every process gets as many batches as its sampler has (see
    `common.train.loop`). Raises `UserError` above the register's limit, and where shared memory cannot hold what the
    workers prefetch.
    """
    _quiet_opencv()
    if workers:
        _check_shared_memory(dataset, sampler, workers, prefetch)
    bad = bad if bad is not None else BadSamples(len(dataset) + len(dataset.index_bad))
    bad.add(dataset.index_bad, write=False)
    loader = DataLoader(
        dataset,
        batch_sampler=_Requests(sampler, endless),
        collate_fn=to_batch,
        num_workers=workers,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        multiprocessing_context=start_method if workers else None,
        worker_init_fn=_one_thread if workers else None,
        # Its own generator: starting an iterator must not draw from torch's global one, or a resumed run would
        # differ.
        generator=torch.Generator(),
    )
    return WordLoader(dataset, sampler, loader, bad, in_step)


def reading_loader(
    dataset: WordDataset,
    batch_size: int,
    workers: int = 0,
    *,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> WordLoader:
    """Every word once and in order, of several ranks each its share: what evaluations read. Unreadable samples, of the
    index or met on the way, are registered in the loader's `bad` and stop nothing: they are reported next to the
    figures. A rank for which there is no word gets no batch."""
    sampler = SeededSampler(len(dataset), batch_size, rank=rank, world_size=world_size, shuffle=False, even=False)
    bad = BadSamples(len(dataset) + len(dataset.index_bad), limit=1.0)
    return word_loader(dataset, sampler, min(workers, len(sampler)), bad=bad, pin_memory=pin_memory)


def epoch_loader(
    dataset: WordDataset,
    batch_size: int,
    *,
    seed: int,
    rank: int,
    world_size: int,
    workers: int,
    accumulate: int,
    accumulate_flag: str,
    bad_share: float,
    bad_list: Path | None,
    pin_memory: bool,
) -> tuple[WordLoader, int]:
    """The loader of a training that counts in epochs, and the steps of one: shuffled by seed and epoch, incomplete
    batches dropped, every process in step.

    Args:
        accumulate, accumulate_flag: micro-batches of a step, and the flag that sets them.
        bad_share, bad_list: share of unreadable samples that stops the run (`--bad_share`); where rank 0 lists them.

    Raises:
        UserError: the data fill no step.
    """
    sampler = SeededSampler(len(dataset), batch_size, seed, rank, world_size, drop_last=True)
    fix = "look with `strlab doctor`, or raise --bad_share"
    bad = BadSamples(len(dataset) + len(dataset.index_bad), bad_share, bad_list, fix)
    loader = word_loader(dataset, sampler, workers, bad=bad, pin_memory=pin_memory, in_step=True)
    steps = len(sampler) // accumulate
    if not steps:
        raise UserError(
            f"{accumulate_flag}: {accumulate} micro-batches of {batch_size} on {world_size} processes are more than "
            f"the {len(dataset)} samples of an epoch"
        )
    return loader, steps


def _check_shared_memory(dataset: WordDataset, sampler: Sampler, workers: int, prefetch: int) -> None:
    """Workers hand over batches in /dev/shm; when it is full they die by a bus error that names nothing."""
    height, width = dataset.image_size
    need = (
        workers
        * (prefetch + 1)
        * sampler.batch_size
        * height
        * width
        * (3 + (0 if dataset.masks is None else np.dtype(dataset.masks.dtype).itemsize))
    )
    if SHARED_MEMORY.is_dir() and need > (free := shutil.disk_usage(SHARED_MEMORY).free):
        raise UserError(
            f"{SHARED_MEMORY}: {free / 2**20:.0f} MB free, {workers} workers with batches of {sampler.batch_size} "
            f"need {need / 2**20:.0f} MB: use fewer workers (0 needs none) or give the container more (--shm-size)"
        )


def _one_thread(_worker: int) -> None:
    """Workers share the cores with training: one thread each, in torch and OpenCV."""
    torch.set_num_threads(1)
    _quiet_opencv()


def _quiet_opencv() -> None:
    """No thread pool in OpenCV: crops are too small for one, and a forked child hangs when it touches its parent's."""
    if cv2.getNumThreads() > 1:
        cv2.setNumThreads(0)
