"""Where the text mask of a sample comes from: the same LMDB, a mirrored one, or a callable that makes it from the
picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.data.decode import BadImage, decode_mask, resize_mask
from common.data.lmdb import TOLERATED_SHARE, WordLmdb
from common.errors import UserError

MaskMaker = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> 0/1 [H, W]


def fit_mask(mask: np.ndarray, size: tuple[int, int], form: str = "binary") -> np.ndarray:
    """A mask [H, W] at the input size [h, w], by the bicubic filter of the image.

    Args:
        mask: integers as stored, or floats as an augmentation leaves them.
        size: (h, w).
        form: "binary": uint8 0/1, cut at 0.5 as SIGA's losses do; "integer": floats lose their fraction before the
            resize, so that a pixel that a warp covers only in part becomes 0 (SIGA S); "float": float32 that is not
            cut, for a loss that cuts after a further warp (SIGA R).
    """
    if form == "integer":
        mask = mask.astype(np.int32)
    if mask.shape != tuple(size):
        mask = resize_mask(mask, size)
    return mask.astype(np.float32) if form == "float" else (mask > 0.5).astype(np.uint8)


def misfit(masks: WordLmdb, words: WordLmdb) -> str:
    """Why these masks cannot be those of the pictures `words`, "" if they can.

    The last mask may lie 1 % before the last picture, and always one before it: SIGA's published tool makes none for
    the last picture, and writes the count of its last part as `num-samples`.
    """
    count = len(words)
    slack = max(1, int(TOLERATED_SHARE * count))

    def any_of(numbers: range) -> bool:
        return any(masks.value("mask", number) is not None for number in numbers)

    if any_of(range(count, count + slack)):
        return f"masks beyond number {count}, the last picture of {words.path}"
    # Our tool says the number of pictures, so the last ones may all be unreadable.
    mirrored = masks.stored_count() == b"%d" % count and next(masks.items("mask"), None) is not None
    if not mirrored and not any_of(range(count - 1, max(count - slack - 2, -1), -1)):
        return f"no masks up to number {count}, the last picture of {words.path}"
    return ""


class MaskSource:
    """Masks made on the fly by `maker`, from the stored picture (`at="native"`, SIGA R) or from the resized one
    ("resized", SIGA T). `form`: how a mask is brought to the input size, see `fit_mask`.
    """

    def __init__(self, maker: MaskMaker | None = None, at: str = "native", form: str = "binary") -> None:
        self.maker, self.at, self.form = maker, at, form

    @property
    def dtype(self) -> type[np.generic]:
        """numpy type of the masks after fitting, by which the loader computes its shared memory."""
        return np.float32 if self.form == "float" else np.uint8

    def native(self, image: np.ndarray, words: WordLmdb, number: int) -> np.ndarray | None:
        """Mask [H, W] of a stored picture uint8 [H, W, 3], or None when it is made after the resize."""
        return self.maker(image) if self.at == "native" and self.maker is not None else None

    def resized(self, image: np.ndarray) -> np.ndarray:
        """Mask [h, w] of the resized picture; zeros without a maker."""
        return np.zeros(image.shape[:2], dtype=np.uint8) if self.maker is None else self.maker(image)


class StoredMasks(MaskSource):
    """Masks kept under `mask-%09d` (PNG of 0/1).

    locate: path of the picture LMDB -> path of the mask LMDB; None: in the same LMDB. `raw=True`: the value is
    height*width bytes (SIGA S). A missing or unreadable mask is made by `maker`; without one the mask is all zero,
    as published. Both are counted per process in `missing`.
    """

    def __init__(
        self,
        locate: Callable[[Path], Path] | None = None,
        raw: bool = False,
        maker: MaskMaker | None = None,
        form: str = "binary",
    ) -> None:
        super().__init__(maker, "native", form)
        self.locate, self.raw, self.missing = locate, raw, 0
        self._open: dict[Path, WordLmdb] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}

    def native(self, image: np.ndarray, words: WordLmdb, number: int) -> np.ndarray | None:
        value = self._lmdb(words).value("mask", number)
        try:
            if value is None:
                raise BadImage("missing")
            mask = self._raw(value, image) if self.raw else decode_mask(value)
        except BadImage:
            self.missing += 1
            return self.maker(image) if self.maker is not None else None
        return mask

    def resized(self, image: np.ndarray) -> np.ndarray:
        return np.zeros(image.shape[:2], dtype=np.uint8)

    def check(self, lmdbs: list[WordLmdb]) -> None:
        """Before training: every mask LMDB opens and its masks end where its pictures do. Raises `UserError`."""
        for words in lmdbs:
            masks = self._lmdb(words)
            wrong = misfit(masks, words)
            if wrong:
                raise UserError(f"{masks.path}: {wrong}: make the masks again")

    def _lmdb(self, words: WordLmdb) -> WordLmdb:
        if self.locate is None:
            return words
        if words.path not in self._open:
            self._open[words.path] = WordLmdb(self.locate(words.path))
        return self._open[words.path]

    @staticmethod
    def _raw(value: bytes, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if len(value) != height * width:
            raise BadImage(f"{len(value)} mask bytes for {width}x{height} pixels")
        return np.frombuffer(value, dtype=np.uint8).reshape(height, width)


class Mirrored:
    """`Mirrored(mask_root)(path)`: `mask_root` + what follows the component `training` of the picture's path (SIGA
    R).
    """

    def __init__(self, mask_root: str | Path, anchor: str = "training") -> None:
        self.mask_root, self.anchor = Path(mask_root), anchor

    def __call__(self, path: Path) -> Path:
        parts = Path(path).absolute().parts
        if self.anchor not in parts:
            raise UserError(
                f"{path}: no folder {self.anchor!r} in this path, so its masks below {self.mask_root} cannot be found"
            )
        return self.mask_root.joinpath(*parts[parts.index(self.anchor) + 1 :])


class Replaced:
    """`Replaced("training", "Mask")(path)`: the picture's path with one component renamed (SIGA S)."""

    def __init__(self, component: str, by: str) -> None:
        self.component, self.by = component, by

    def __call__(self, path: Path) -> Path:
        parts = Path(path).parts
        if self.component not in parts:
            raise UserError(f"{path}: no folder {self.component!r} in this path, so its masks cannot be found")
        return Path(*(self.by if part == self.component else part for part in parts))
