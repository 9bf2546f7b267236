"""Group "weather": fog, snow, frost, rain and shadow. Specs: mgpstr, section 4; siga, section 4.2."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw

from common.augment import frost
from common.augment.blur import motion_blur
from common.augment.operation import Operation, product, spread, to_uint8
from common.augment.rng import Rng, integers, uniforms

_UNIT = np.arange(256) / 255.0
_UNIT32 = _UNIT.astype(np.float32)
PLASMA_SIDE = 256


COARSE = 16


def plasma(rng: Rng, decay: float, side: int = PLASMA_SIDE) -> np.ndarray:
    """Cloud picture [side, side] of [0, 1] by the diamond-square algorithm; the noise falls by `decay` per level.

    Rows and columns wrap around; `side` is a power of two, at least 16.
    """
    # The cloud is linear in its noise, so the coarse levels, where calls cost more than arithmetic, are one product.
    draws = 2 * uniforms(rng, (COARSE**2 - 1,)) - 1
    field = product(_coarse(decay), draws.astype(np.float64)).reshape(COARSE, COARSE).astype(draws.dtype)
    wobble = 100.0 / decay ** math.log2(COARSE)
    while len(field) < side:
        drawn = uniforms(rng, (3, *field.shape))
        drawn *= 2 * wobble * wobble
        drawn -= wobble * wobble
        field = _finer(field, drawn)
        wobble /= decay
    field -= field.min()
    field /= field.max()
    return field


@lru_cache(maxsize=8)
def _coarse(decay: float) -> np.ndarray:
    """[256, 255]: the 16x16 cloud of every single noise draw of U(-1, 1), in drawing order."""
    columns = []
    for index in range(COARSE**2 - 1):
        draws = np.zeros(COARSE**2 - 1)
        draws[index] = 1
        field, wobble, used = np.zeros((1, 1)), 100.0, 0
        while len(field) < COARSE:
            count = 3 * field.size
            field = _finer(field, wobble * wobble * draws[used : used + count].reshape(3, *field.shape))
            wobble, used = wobble / decay, used + count
        columns.append(field.ravel())
    return np.stack(columns, axis=1)


def _finer(field: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """One level: field [n, n] and noise [3, n, n] (square centres, then the two kinds of edge midpoints) -> [2n,
    2n].
    """
    # A first row and column repeated behind the last makes every wrapping neighbour the next one.
    corners = cv2.copyMakeBorder(field, 0, 1, 0, 1, cv2.BORDER_WRAP)
    down, right = corners[:-1] + corners[1:], corners[:, :-1] + corners[:, 1:]
    centres = noise[0] + (down[:, :-1] + down[:, 1:]) * 0.25
    around = cv2.copyMakeBorder(centres, 1, 0, 1, 0, cv2.BORDER_WRAP)
    fine = np.empty((2 * len(field), 2 * len(field)), centres.dtype)
    fine[::2, ::2], fine[1::2, 1::2] = field, centres
    fine[::2, 1::2] = noise[1] + (around[1:, 1:] + around[:-1, 1:] + right[:-1]) * 0.25
    fine[1::2, ::2] = noise[2] + (around[1:, 1:] + around[1:, :-1] + down[:, :-1]) * 0.25
    return fine


def fog(image: np.ndarray, strength: float, cloud: np.ndarray) -> np.ndarray:
    """Add `strength` times `cloud` ([0, 1], image's height and width) and scale so that the brightest value stays."""
    unit = cv2.LUT(image, _UNIT if cloud.dtype == np.float64 else _UNIT32)
    brightest = float(unit.max())
    unit += spread(strength * cloud)
    unit *= brightest / (brightest + strength)
    return to_uint8(unit)


def snow(image: np.ndarray, mix: float, flakes: np.ndarray) -> np.ndarray:
    """Whiten by `mix`, then add `flakes` (uint8 HxW, already blurred) and their copy rotated by 180 degrees."""
    unit = cv2.LUT(image, _UNIT32) * np.float32(mix)
    grey = cv2.cvtColor(unit, cv2.COLOR_RGB2GRAY) * np.float32(1.5) + np.float32(0.5)
    unit += np.float32(1 - mix) * cv2.max(unit, spread(grey))
    layer = flakes.astype(np.float32) / np.float32(255)
    unit += spread(layer + layer[::-1, ::-1])
    return to_uint8(unit)


def frost_over(image: np.ndarray, own: float, share: float, crop: np.ndarray, rounded: bool) -> np.ndarray:
    """own * image + share * crop (uint8, image's shape), clipped; truncated, or `rounded`."""
    mixed = cv2.addWeighted(image, own, crop, share, 0.5 if rounded else 1e-4, dtype=cv2.CV_32F)
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


@lru_cache(maxsize=4096)
def _stroke(dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column offsets of PIL's one-pixel line from (0, 0) to (dx, dy)."""
    span = 2 * max(abs(dx), abs(dy)) + 1
    picture = Image.new("L", (span, span))
    ImageDraw.Draw(picture).line([(span // 2, span // 2), (span // 2 + dx, span // 2 + dy)], fill=1, width=1)
    rows, columns = np.nonzero(np.asarray(picture))
    return rows - span // 2, columns - span // 2


def rain(image: np.ndarray, strokes: np.ndarray, slant: float) -> np.ndarray:
    """Grey (200) one-pixel lines; `strokes` int [n, 3] = length, x, y of the upper end in pixels, `slant` in
    degrees.
    """
    out = image.copy()
    height, width = image.shape[:2]
    lengths, xs, ys = strokes.T
    sin, cos = math.sin(slant * math.pi / 180.0), math.cos(slant * math.pi / 180.0)
    # The published end is int(start + length * sin): truncation towards zero, so a start near the border matters.
    ends_x, ends_y = (xs + lengths * sin).astype(np.int64) - xs, (ys + lengths * cos).astype(np.int64) - ys
    shapes = ends_x * 64 + ends_y
    for shape in np.unique(shapes):
        chosen = shapes == shape
        rows, columns = _stroke(int(ends_x[chosen][0]), int(ends_y[chosen][0]))
        rows, columns = ys[chosen][:, None] + rows, xs[chosen][:, None] + columns
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        out[rows[inside], columns[inside]] = 200
    return out


def shadow(image: np.ndarray, opacity: int, corners: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Composite a black quadrilateral of `opacity` (0 to 255) over the image."""
    height, width = image.shape[:2]
    area = Image.new("L", (width, height))
    ImageDraw.Draw(area).polygon(list(corners), fill=1)
    return cv2.copyTo(cv2.LUT(image, _shaded(opacity)), np.asarray(area), image.copy())


@lru_cache(maxsize=256)
def _shaded(opacity: int) -> np.ndarray:
    """What every value becomes under black of `opacity`, by PIL's own compositing."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert("RGBA")
    over = Image.new("RGBA", ramp.size, (0, 0, 0, opacity))
    return np.asarray(Image.alpha_composite(ramp, over))[0, :, 0].copy()


def _draw_fog(rng: Rng, level: tuple[float, float], image: np.ndarray) -> tuple:
    strength, decay = level
    height, width = image.shape[:2]
    side = max(PLASMA_SIDE, 1 << (max(height, width) - 1).bit_length())
    return strength, plasma(rng, decay, side)[:height, :width]


def _draw_snow(rng: Rng, level: tuple, image: np.ndarray) -> tuple:
    mean, deviation, threshold, radius, sigma, mix = level
    layer = rng.normal(loc=mean, scale=deviation, size=image.shape[:2])
    layer[layer < threshold] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    return mix, motion_blur(layer, radius, sigma, rng.uniform(-135, -45))


def _draw_frost(rng: Rng, level: tuple[float, float, bool], image: np.ndarray) -> tuple:
    own, share, fitted = level
    height, width = image.shape[:2]
    texture = frost.texture(integers(rng, 0, frost.COUNT))
    texture = frost.fitted(texture, height, width) if fitted else frost.covering(texture, height, width)
    extra = 1 if fitted else 0  # the published crop never starts at the last possible row or column
    y = integers(rng, 0, max(texture.shape[0] - height + extra, 1))
    x = integers(rng, 0, max(texture.shape[1] - width + extra, 1))
    return own, share, texture[y : y + height, x : x + width], fitted


def _draw_rain(rng: Rng, low: int, image: np.ndarray) -> tuple:
    height, width = image.shape[:2]
    integers(rng, 1, 2)  # the line's width: always 1, but drawn
    count = integers(rng, low, low + 20) - 1
    slant = integers(rng, -60, 60)
    longest = max(min(width, height, 10), 6)  # at 32x128 always 10, as published; smaller pictures would have no room
    if isinstance(rng, np.random.RandomState):
        strokes = []
        for _ in range(count):
            length = integers(rng, 5, longest)
            strokes.append((length, integers(rng, 0, width - length), integers(rng, 0, height - length)))
        return np.array(strokes), slant
    lengths = rng.integers(5, longest, count)
    xs, ys = rng.integers(0, np.maximum(width - lengths, 1)), rng.integers(0, np.maximum(height - lengths, 1))
    return np.stack([lengths, xs, ys], axis=1), slant


def _draw_shadow(rng: Rng, low: int, image: np.ndarray) -> tuple:
    opacity = integers(rng, low, low + 32)
    height, width = image.shape[:2]
    half = width // 2
    xs = [integers(rng, start, stop) for start, stop in ((0, half), (half, width), (half, width), (0, half))]
    return opacity, tuple(zip(xs, (0, 0, height - 1, height - 1), strict=True))


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """The group, in the published order."""
    flakes = {"original": ((0.1, 0.3, 0.5, 10, 4, 0.8), (0.2, 0.3, 0.5, 12, 4, 0.7), (0.55, 0.3, 0.9, 12, 8, 0.7))}
    # The originals multiply by the two coefficients twice.
    squared = tuple((own**2, share**2, False) for own, share in ((1, 0.4), (0.8, 0.6), (0.7, 0.7)))
    panes = {"original": squared, "straug": ((0.78, 0.22, True), (0.64, 0.36, True), (0.5, 0.5, True))}
    return (
        Operation("Fog", _draw_fog, fog, {"original": ((1.5, 2), (2, 2), (2.5, 1.7))}),
        Operation("Snow", _draw_snow, snow, flakes),
        Operation("Frost", _draw_frost, frost_over, panes),
        Operation("Rain", _draw_rain, rain, {"original": (50, 70, 90)}, invalid=0),
        Operation("Shadow", _draw_shadow, shadow, {"original": (64, 96, 128)}, invalid=0),
    )
