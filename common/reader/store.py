"""A store of crops that were rendered already, so that showing one again costs a copy and not a rendering."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class CropStore:
    """Crops by number in two sparse files: uint8 `[capacity, H, W, 3]` and labels `[capacity, 25]` (ASCII, zeros pad).

    A number is known once its label is written, which happens after its pixels. Losing the files loses nothing but
    time: every crop is a function of its seed and number.
    """

    LONGEST = 25

    def __init__(self, folder: Path, capacity: int, size: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.capacity = capacity
        self._pixels = self._open(folder / f"pixels-{capacity}.u8", (capacity, *size, 3))
        self._labels = self._open(folder / f"labels-{capacity}.u8", (capacity, self.LONGEST))

    @staticmethod
    def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray:
        return np.memmap(path, np.uint8, "r+" if path.exists() else "w+", shape=shape)

    def get(self, number: int) -> tuple[np.ndarray, str] | None:
        """The crop and its label, or None where it is not stored."""
        if number >= self.capacity or not self._labels[number, 0]:
            return None
        return self._pixels[number].copy(), self._labels[number].tobytes().rstrip(b"\0").decode("ascii")

    def put(self, number: int, pixels: np.ndarray, label: str) -> None:
        """Keep a crop; numbers beyond the capacity and labels outside ASCII are not kept."""
        if number < self.capacity and label.isascii() and len(label) <= self.LONGEST:
            self._pixels[number] = pixels
            self._labels[number] = np.frombuffer(label.encode().ljust(self.LONGEST, b"\0"), np.uint8)
