"""From letter coverage to a photograph-like crop: colours, shadow, outline, lighting, lens and sensor."""

from __future__ import annotations

import cv2
import numpy as np

from common.data.synth.backgrounds import (
    LUMA,
    linear_ramp,
    noise_pool,
    random_backdrop,
    random_colour,
    textures,
    window,
)
from common.data.synth.options import Profile


def paint(
    rng: np.random.Generator, profile: Profile, alpha: np.ndarray, stroke: float, held_out: bool
) -> tuple[np.ndarray, str]:
    """Paint a word over a random background.

    alpha: uint8 [h, w], coverage of the letters. stroke: text height in pixels, the unit of shadows and outlines.
    Returns float32 [h, w, 3] in 0..255 and the kind of background.
    """
    height, width = alpha.shape
    text_luma, back_luma = _lumas(rng, profile.contrast)
    back = random_backdrop(rng, profile, height, width, held_out, back_luma)
    image = back.pixels
    # Clipping moves a background's mean; the text moves with it, so that the contrast is what was drawn.
    text_luma = float(np.clip(text_luma + back.luma - back_luma, 0, 255))
    colour = random_colour(rng, text_luma)
    draws = rng.random(4)
    if draws[3] < profile.clutter_share:
        image = _clutter(rng, image, stroke)
    if draws[0] < profile.shadow_share:
        image = _shadow(rng, image, alpha, stroke, text_luma)
    if draws[1] < profile.outline_share:
        reach = 3 if stroke < 28 else 5
        around = cv2.dilate(alpha, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
        edge = 255.0 - text_luma if rng.random() < 0.5 else back.luma * 0.5 + (0 if text_luma > back.luma else 127)
        image = _over(image, around, random_colour(rng, float(np.clip(edge, 0, 255))))
    if draws[2] < profile.fill_share:
        colour = _fill(rng, colour, height, width)
    return _over(image, alpha, colour), back.kind


def _lumas(rng: np.random.Generator, contrast: tuple[float, float]) -> tuple[float, float]:
    """Luma of text and background, apart by a draw of `contrast`; dark on light slightly oftener."""
    apart = rng.uniform(*contrast)
    low = rng.uniform(5, max(6, 250 - apart))
    pair = (low, min(low + apart, 255.0))
    return pair if rng.random() < 0.55 else pair[::-1]


def _over(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    weight = (alpha.astype(np.float32) * np.float32(1 / 255))[..., None]
    return image + weight * (colour - image)


def _shadow(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, stroke: float, luma: float) -> np.ndarray:
    dx, dy = rng.uniform(0.02, 0.09, 2) * stroke * rng.choice((-1, 1), 2)
    moved = cv2.warpAffine(alpha, np.float32([[1, 0, dx], [0, 1, dy]]), alpha.shape[::-1])
    if rng.random() < 0.6:
        moved = cv2.GaussianBlur(moved, (0, 0), float(rng.uniform(0.5, 0.04 * stroke + 0.8)))
    shade = rng.uniform(0, 60) if luma > 100 or rng.random() < 0.5 else rng.uniform(160, 250)
    moved = cv2.convertScaleAbs(moved, alpha=float(rng.uniform(0.35, 0.8)))
    return _over(image, moved, np.full(3, shade, np.float32))


def _fill(rng: np.random.Generator, colour: np.ndarray, height: int, width: int) -> np.ndarray:
    """A gradient or a texture in place of one colour, float32 [h, w, 3]; its luma stays near the colour's."""
    if rng.random() < 0.5:
        other = random_colour(rng, float(np.clip(colour @ LUMA + rng.uniform(-40, 40), 0, 255)))
        return colour + linear_ramp(rng, height, width)[..., None] * (other - colour)
    pool = textures()
    grain = window(pool[int(rng.integers(len(pool)))], rng, height, width)
    return np.clip(colour + grain[..., None] * np.float32(rng.uniform(6, 16)), 0, 255)


def _clutter(rng: np.random.Generator, image: np.ndarray, stroke: float) -> np.ndarray:
    """One to three straight edges: frames, seams and the borders of signs."""
    height, width = image.shape[:2]
    image = np.ascontiguousarray(image).copy()
    for _ in range(int(rng.integers(1, 4))):
        colour = tuple(map(float, random_colour(rng, float(rng.uniform(0, 255)))))
        thick = int(rng.integers(1, max(2, int(stroke * 0.1)) + 1))
        slope = rng.uniform(-0.08, 0.08)
        if rng.random() < 0.7:
            y = float(rng.choice((rng.uniform(0, 0.12), rng.uniform(0.88, 1)))) * height
            ends = (0, round(y - slope * width / 2)), (width - 1, round(y + slope * width / 2))
        else:
            x = rng.uniform(0, 1) * width
            ends = (round(x - slope * height), 0), (round(x + slope * height), height - 1)
        cv2.line(image, *ends, colour, thick, cv2.LINE_AA)
    return image


def photograph(rng: np.random.Generator, profile: Profile, image: np.ndarray, stroke: float) -> np.ndarray:
    """Light, blur, lose resolution, add noise. float32 [h, w, 3] in, uint8 [h, w, 3] out; JPEG comes later.

    stroke: text height in pixels, which bounds the blur: a word that nobody can read teaches nothing.
    """
    height, width = image.shape[:2]
    draws = rng.random(5)
    if draws[0] < 0.6:
        gain = 1 + profile.light * (linear_ramp(rng, height, width) - 0.5) * 2
        image = image * gain[..., None]
    if draws[1] < profile.lowres_share:
        factor = max(rng.uniform(0.45, 0.8), min(1.0, 9 / stroke))
        small = max(4, round(width * factor)), max(4, round(height * factor))
        image = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))
    if draws[2] < profile.motion_share:
        image = cv2.filter2D(image, -1, _motion_kernel(rng, stroke))
    else:
        low, high = profile.blur
        sigma = min(low + (high - low) * draws[3], 0.06 * stroke)
        if sigma > 0.3:
            image = cv2.GaussianBlur(image, (0, 0), sigma)
    low, high = profile.noise
    sigma = low + (high - low) * draws[4] ** 2  # mostly little
    if sigma > 0.5:
        image = image + window(noise_pool(), rng, height, width) * np.float32(sigma)
    if rng.random() < 0.06:  # black-and-white cameras
        image = np.repeat((image @ LUMA)[..., None], 3, 2)
    return np.clip(image, 0, 255).astype(np.uint8)


def _motion_kernel(rng: np.random.Generator, stroke: float) -> np.ndarray:
    size, angle = 5 if rng.random() < 0.5 and stroke > 24 else 3, rng.uniform(0, np.pi)
    kernel, middle = np.zeros((size, size), np.float32), size // 2
    dx, dy = np.cos(angle) * middle, np.sin(angle) * middle
    cv2.line(kernel, (round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)), 1.0)
    return kernel / kernel.sum()
