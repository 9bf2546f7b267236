"""Six frost textures for the Frost operation.

The published pictures come with PyPI `straug` (Apache-2.0 package, photographs of unstated origin), so they are not
part of this repository. If that package is installed (`pip install --no-deps straug`), or the environment variable
STRLAB_FROST names a folder that holds frost1.png .. frost6.jpg, they are used; otherwise six procedural textures of
the same kind are grown from a fixed seed.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

COUNT = 6
_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")
_SIZE = (384, 640)


def folder() -> Path | None:
    """Folder with the published pictures, or None."""
    named = os.environ.get("STRLAB_FROST")
    if named:
        candidate = Path(named)
    else:
        # Finding the package does not import it: its modules need libraries that are not wanted here.
        spec = importlib.util.find_spec("straug")
        if spec is None or not spec.submodule_search_locations:
            return None
        candidate = Path(next(iter(spec.submodule_search_locations))) / "frost"
    return candidate if all((candidate / name).is_file() for name in _FILES) else None


@lru_cache(maxsize=COUNT)
def texture(index: int) -> np.ndarray:
    """Texture 0..5, uint8 HxWx3 RGB, decoded or grown once per process."""
    pictures = folder()
    if pictures is not None:
        with Image.open(pictures / _FILES[index]) as picture:
            return np.asarray(picture.convert("RGB"))
    return _grow(index)


def _grow(seed: int) -> np.ndarray:
    """Ice: bright needles that branch from random seeds, over a soft blue-grey haze."""
    rng = np.random.default_rng([7021, seed])
    height, width = _SIZE
    haze = sum(
        cv2.resize(
            rng.random((4 << level, 6 << level), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        / (level + 1)
        for level in range(5)
    )
    haze = (haze - haze.min()) / np.ptp(haze)
    needles = np.zeros(_SIZE, np.uint8)
    for _ in range(60 + 20 * seed):
        _needle(needles, rng, rng.uniform((0, 0), (width, height)), rng.uniform(0, 2 * np.pi), rng.uniform(25, 90), 3)
    sharp = needles.astype(np.float32) / 255
    ice = 0.55 * haze + 0.5 * cv2.GaussianBlur(sharp, (0, 0), 4) + 0.45 * cv2.GaussianBlur(sharp, (0, 0), 0.8)
    ice *= 0.75 + 0.25 * rng.random(_SIZE, dtype=np.float32)
    tint = np.array([0.82, 0.92, 1.0], np.float32)
    return (np.clip(ice[..., None] * tint, 0, 1) * 255).astype(np.uint8)


def _needle(
    canvas: np.ndarray, rng: np.random.Generator, start: np.ndarray, angle: float, length: float, depth: int
) -> None:
    """Draw a needle with side needles at about 60 degrees, `depth` generations deep."""
    direction = np.array([np.cos(angle), np.sin(angle)])
    end = start + direction * length
    cv2.line(
        canvas,
        tuple(int(v) for v in start),
        tuple(int(v) for v in end),
        int(rng.integers(120, 256)),
        depth - 1 or 1,
        cv2.LINE_AA,
    )
    if depth == 1:
        return
    for along in np.arange(0.15, 1, 0.14):
        turn = rng.choice((-1, 1)) * np.deg2rad(60 + rng.normal(0, 6))
        _needle(canvas, rng, start + direction * length * along, angle + turn, length * 0.4 * (1.1 - along), depth - 1)


@lru_cache(maxsize=64)
def _resized(size: tuple[int, int], key: int) -> np.ndarray:
    return np.asarray(Image.fromarray(texture(key)).resize(size))


def _index(picture: np.ndarray) -> int:
    return next(index for index in range(COUNT) if texture(index) is picture)


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The whole texture scaled until it just covers height x width, as PyPI `straug` does."""
    rows, columns = picture.shape[:2]
    scaled = (
        (width, round(rows * width / columns))
        if width / height > columns / rows
        else (round(columns * height / rows), height)
    )
    return _resized(scaled, _index(picture))


def covering(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The texture at full size, enlarged only where the image is larger than it."""
    factor = max(height / picture.shape[0], width / picture.shape[1])
    if factor < 1:
        return picture
    size = (int(np.ceil(picture.shape[1] * factor)) + 1, int(np.ceil(picture.shape[0] * factor)) + 1)
    return _resized(size, _index(picture))
