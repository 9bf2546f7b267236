"""What lies behind the words: plain colours, gradients, procedural textures and crops of photographs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.data.decode import BadImage
from common.data.pictures import decode_shown
from common.data.synth.options import Profile
from common.errors import UserError
from common.files import files_below, read_regular

# Pictures inside the scikit-image package, all CC0, public domain or without known copyright restrictions.
TRAINING_PHOTOS = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "grass.png", "rocket.jpg",
                   "hubble_deep_field.jpg", "clock_motion.png")  # fmt: skip
EVALUATION_PHOTOS = ("coffee.png", "gravel.png", "coins.png")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SMALLEST_GROUND = 64
_POOL = (192, 832)  # height and width of textures and noise; crops are at most 128 x 512
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Backdrop:
    """A background, float32 [3, h, w] in 0..255, with the name of its kind and its mean luma."""

    pixels: np.ndarray
    kind: str
    luma: float


@functools.lru_cache(maxsize=4)
def photos(held_out: bool, grounds: str = "") -> tuple[np.ndarray, ...]:
    """RGB uint8 photographs of training or of evaluation: the bundled ones, or own ones from the folder `grounds`."""
    if grounds:
        return _own_pictures(Path(grounds), held_out)
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    pictures = []
    for name in EVALUATION_PHOTOS if held_out else TRAINING_PHOTOS:
        picture = cv2.imread(str(folder / name), cv2.IMREAD_COLOR)
        if picture is None:  # a scikit-image build that leaves a picture out
            continue
        shrink = 640 / max(picture.shape[:2])
        if shrink < 1:
            picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        pictures.append(np.ascontiguousarray(picture[:, :, ::-1]))
    return tuple(pictures)


def _own_pictures(folder: Path, held_out: bool) -> tuple[np.ndarray, ...]:
    """The pictures of a folder, at most 640 pixels wide or high; every fifth is for evaluation.

    Raises `UserError` where none of them can be used.
    """
    pictures = []
    for path in files_below(folder, lambda name: Path(name).suffix.lower() in SUFFIXES):
        try:
            picture = decode_shown(read_regular(path))
        except (BadImage, OSError) as error:
            print(f"{path}: no ground: {error}", flush=True)
            continue
        shrink = 640 / max(picture.shape[:2])
        if shrink < 1:
            picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        if min(picture.shape[:2]) >= SMALLEST_GROUND:
            pictures.append(np.ascontiguousarray(picture))
    if not pictures:
        raise UserError(f"--grounds-dir: {folder}: no picture of at least {SMALLEST_GROUND} pixels in it")
    if len(pictures) < 5:
        return tuple(pictures)  # too few to keep some for evaluation
    return tuple(picture for place, picture in enumerate(pictures) if (place % 5 == 0) == held_out)


@functools.lru_cache(maxsize=1)
def textures() -> tuple[np.ndarray, ...]:
    """Procedural grey textures, float32 of mean 0 and standard deviation 1: clouds, grain, streaks, bricks, cloth."""
    rng = np.random.default_rng(20)
    height, width = _POOL
    made = []

    def clouds(rows: int, columns: int, octaves: int) -> np.ndarray:
        total = np.zeros(_POOL, np.float32)
        for octave in range(octaves):
            grid = rng.standard_normal((rows << octave, columns << octave), dtype=np.float32)
            total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
        return total

    made += [clouds(3, 12, 5), clouds(6, 26, 5), clouds(24, 100, 3)]  # smoke, plaster, stone
    made += [clouds(48, 6, 3), clouds(4, 100, 3)]  # brushed along the word and across it
    made.append(clouds(96, 416, 1) + 0.5 * clouds(6, 26, 3))  # coarse grain
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    shifted = x + (y // 24 % 2) * 26
    mortar = ((y % 24 < 3) | (shifted % 52 < 3)).astype(np.float32)
    made.append(cv2.GaussianBlur(-2.0 * mortar, (0, 0), 0.8) + 0.25 * clouds(24, 100, 2))
    made.append(np.sin(x * 0.9) * np.sin(y * 0.9) + 0.3 * clouds(24, 100, 2))  # weave
    made.append(np.sin((x + y) * 0.25) + 0.2 * clouds(12, 52, 2))  # diagonal stripes
    ring = np.sqrt((y - 90) ** 2 * 9 + (x - 300) ** 2 * 0.2) + 6 * clouds(3, 12, 3)
    made.append(np.sin(ring * 0.16) + 0.3 * clouds(48, 12, 2))  # wood
    return tuple(((t - t.mean()) / t.std()).clip(-2.5, 2.5).astype(np.float32) for t in made)


@functools.lru_cache(maxsize=1)
def noise_pool() -> np.ndarray:
    """Standard normal noise, float32 [h, w, 3], of which crops take a window: cheaper than drawing it anew."""
    return np.random.default_rng(21).standard_normal((*_POOL, 3), dtype=np.float32)


def window(pool: np.ndarray, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random view of `height` x `width` of a pool array."""
    top, left = rng.integers(0, pool.shape[0] - height + 1), rng.integers(0, pool.shape[1] - width + 1)
    return pool[top : top + height, left : left + width]


def random_colour(rng: np.random.Generator, luma: float) -> np.ndarray:
    """An RGB colour, float32 [3], of about the luma: mostly pale, sometimes vivid, a third of them grey."""
    direction = rng.random(3).astype(np.float32)
    direction -= direction @ LUMA
    direction /= np.abs(direction).max() + np.float32(1e-6)
    chroma = 0.0 if rng.random() < 0.33 else min(float(rng.exponential(55)), 140.0)
    # Clipped channels would move the luma: as vivid as the luma allows, so white and black stay nearly grey.
    room = np.where(direction > 0, 255 - luma, luma) / np.abs(direction).clip(1e-3)
    return np.clip(luma + direction * min(chroma, float(room.min())), 0, 255).astype(np.float32)


def random_backdrop(
    rng: np.random.Generator, profile: Profile, height: int, width: int, held_out: bool, luma: float
) -> Backdrop:
    """Draw a background of `height` x `width` with a mean luma near `luma`."""
    u, depth = rng.random(2)
    low, high = profile.background_contrast
    depth = float(low + depth * (high - low))
    colour = random_colour(rng, luma)
    if u < profile.photo_share:
        return _photo(rng, photos(held_out, profile.grounds), height, width, depth, luma)
    if u < profile.photo_share + profile.texture_share:
        grain = random_texture(rng, height, width)
        swing = depth * (24 + 0.25 * (random_colour(rng, luma) - colour))
        return _finish(planes(colour) + grain * planes(swing), "texture")
    if rng.random() < 0.5:
        return Backdrop(np.tile(planes(colour), (1, height, width)), "plain", float(colour @ LUMA))
    ramp = linear_ramp(rng, height, width) - np.float32(0.5)
    other = random_colour(rng, float(rng.uniform(10, 245)))
    return _finish(planes(colour) + ramp * planes(depth * (other - colour)), "gradient")


def planes(colour: np.ndarray) -> np.ndarray:
    """A colour [3] in the shape [3, 1, 1]: images are composed as planes, for long inner loops."""
    return colour[:, None, None]


def random_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A window of a procedural texture, float32 [h, w] of mean 0 and standard deviation 1."""
    pool = textures()
    return window(pool[int(rng.integers(len(pool)))], rng, height, width)


def _photo(
    rng: np.random.Generator, pictures: tuple[np.ndarray, ...], height: int, width: int, depth: float, luma: float
) -> Backdrop:
    if not pictures:
        return Backdrop(np.full((3, height, width), luma, np.float32), "plain", luma)
    picture = pictures[int(rng.integers(len(pictures)))]
    zoom = float(np.exp(rng.uniform(-0.9, 0.5)))  # photo pixels per crop pixel
    zoom = min(zoom, picture.shape[0] / height, picture.shape[1] / width)
    part = window(picture, rng, max(2, int(height * zoom)), max(2, int(width * zoom)))
    part = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    mean = np.array(cv2.mean(part)[:3], np.float32)
    offset = mean * (1 - depth) + (luma - float(mean @ LUMA))
    pixels = np.empty((3, height, width), np.float32)
    for channel in range(3):
        np.multiply(part[:, :, channel], np.float32(depth), out=pixels[channel])
    return _finish(pixels + planes(offset), "photo")


def _finish(pixels: np.ndarray, kind: str) -> Backdrop:
    np.clip(pixels, 0, 255, out=pixels)
    return Backdrop(pixels, kind, float(pixels.reshape(3, -1).mean(1) @ LUMA))


def linear_ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A linear ramp 0..1 in a random direction, float32 [h, w]."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.linspace(-0.5, 0.5, width, dtype=np.float32), np.linspace(-0.5, 0.5, height, dtype=np.float32)
    dx, dy = float(np.cos(angle)), float(np.sin(angle))
    reach = abs(dx) + abs(dy)
    return (x[None] * (dx / reach) + y[:, None] * (dy / reach)) + np.float32(0.5)
