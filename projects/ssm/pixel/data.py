"""Pairs of pictures for the pixel tasks: TextZoom's LMDBs (super-resolution), photos and text masks (segmentation)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common.data.bad import BadSample
from common.data.decode import BadImage, decode_resized
from common.data.lmdb import WordLmdb
from common.data.sources import open_words
from common.data.words import ArrayBatch, Request, discover
from common.errors import UserError


class Pairs:
    """Input above target, both resized to (height, width): uint8 `[2 * height, width, 3]` for every index.

    Takes the place of a `WordDataset` in `word_loader`; labels are empty.
    """

    masks = None

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.view_size = tuple(image_size)
        self.image_size = (2 * image_size[0], image_size[1])
        self.index_bad: list[BadSample] = []

    def __len__(self) -> int:
        raise NotImplementedError

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """Bytes of input and target. Raises `BadImage` where one is missing."""
        raise NotImplementedError

    def location(self, index: int) -> tuple[SimpleNamespace | WordLmdb, int]:
        """Where sample `index` is stored: something with a `path`, and its number there, from 0."""
        raise NotImplementedError

    def __getitems__(self, request: Request) -> ArrayBatch:
        images, kept, bad = [], [], []
        for index in map(int, request.indices):
            try:
                views = [decode_resized(data, self.view_size) for data in self.encoded(index)]
            except BadImage as error:
                place, number = self.location(index)
                bad.append(BadSample(str(place.path), number + 1, str(error)))
                continue
            images.append(np.concatenate(views))
            kept.append(index)
        stacked = np.stack(images) if images else np.empty((0, *self.image_size, 3), np.uint8)
        return ArrayBatch(stacked, [""] * len(kept), np.array(kept, np.int64), None, bad)


class Resolutions(Pairs):
    """`image_lr-%09d` and `image_hr-%09d` of all LMDBs below a folder."""

    def __init__(self, root: str | Path, image_size: tuple[int, int]) -> None:
        super().__init__(image_size)
        self.sources = [open_words(path) for path in discover(root)]
        self.starts = np.cumsum([0, *map(len, self.sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def location(self, index: int) -> tuple[WordLmdb, int]:
        source = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sources[source], index - int(self.starts[source])

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        words, number = self.location(index)
        low, high = words.value("image_lr", number), words.value("image_hr", number)
        if low is None or high is None:
            raise BadImage("no image_lr or no image_hr")
        return low, high


class Masks(Pairs):
    """`image/<name>.jpg` and `mask/<name>_mask.jpg` of folders. Raises `UserError` where one holds no such pair."""

    def __init__(self, roots: Sequence[str | Path], image_size: tuple[int, int], flag: str = "--data_path") -> None:
        super().__init__(image_size)
        self.files: list[tuple[Path, Path]] = []
        for root in map(Path, roots):
            pictures = sorted((root / "image").glob("*.jpg"))
            if not pictures:
                raise UserError(f"{flag}: {root} holds no image/*.jpg with mask/*_mask.jpg")
            self.files += [(path, root / "mask" / f"{path.stem}_mask.jpg") for path in pictures]

    def __len__(self) -> int:
        return len(self.files)

    def location(self, index: int) -> tuple[SimpleNamespace, int]:
        return SimpleNamespace(path=self.files[index][0]), index

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        try:
            picture, mask = (path.read_bytes() for path in self.files[index])
        except OSError as error:
            raise BadImage(f"{error.filename}: {error.strerror}") from None
        return picture, mask


def training_pairs(kind: str, data: str, size: tuple[int, int]) -> Pairs:
    """What to train on: LMDBs below `data` ("SR"), or data/train and data/val together, as published ("Seg")."""
    return Resolutions(data, size) if kind == "SR" else Masks([Path(data) / "train", Path(data) / "val"], size)


def evaluation_pairs(kind: str, data: str, evaluation: str, size: tuple[int, int]) -> Pairs:
    """What to measure on: `evaluation`; without it data/val for "Seg"."""
    if kind == "SR" and not evaluation:
        raise UserError("--eval_data_path: it is needed for --pixel_type SR: LMDBs to measure on")
    if kind == "SR":
        return Resolutions(evaluation, size)
    if not evaluation:
        print(f"--eval_data_path: not given; measuring on {data}/val, which is trained on too; give other pictures")
    return Masks([evaluation or Path(data) / "val"], size, "--eval_data_path" if evaluation else "--data_path")
