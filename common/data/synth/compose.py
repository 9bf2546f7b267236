"""From letter coverage to a photograph-like crop: colours, shadow, outline, lighting, lens and sensor."""

from __future__ import annotations

import cv2
import numpy as np

from common.data.synth.backgrounds import (
    LUMA,
    linear_ramp,
    noise_pool,
    planes,
    random_backdrop,
    random_colour,
    random_texture,
    window,
)
from common.data.synth.options import Profile


def paint(
    rng: np.random.Generator, profile: Profile, alpha: np.ndarray, stroke: float, held_out: bool
) -> tuple[np.ndarray, str]:
    """Paint a word over a random background.

    alpha: uint8 [h, w], coverage of the letters. stroke: text height in pixels, the unit of shadows and outlines.
    Returns float32 [3, h, w] in 0..255 and the kind of background.
    """
    height, width = alpha.shape
    text_luma, back_luma = _lumas(rng, profile.contrast, profile.dark_share)
    back = random_backdrop(rng, profile, height, width, held_out, back_luma)
    image = back.pixels
    # Clipping moves a background's mean; the text moves with it, so that the contrast is what was drawn.
    text_luma = float(np.clip(text_luma + back.luma - back_luma, 0, 255))
    colour = planes(random_colour(rng, text_luma))
    draws = rng.random(4)
    if draws[3] < profile.clutter_share:
        image = _clutter(rng, image, stroke)
    if draws[0] < profile.shadow_share:
        image = _shadow(rng, image, alpha, stroke, text_luma)
    if draws[1] < profile.outline_share:
        reach = 3 if stroke < 28 else 5
        around = cv2.dilate(alpha, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
        edge = 255.0 - text_luma if rng.random() < 0.5 else back.luma * 0.5 + (0 if text_luma > back.luma else 127)
        image = blend(image, around, planes(random_colour(rng, float(np.clip(edge, 0, 255)))))
    if draws[2] < profile.fill_share:
        colour = _fill(rng, colour, height, width)
    return blend(image, alpha, colour), back.kind


def _lumas(rng: np.random.Generator, contrast: tuple[float, float], dark_share: float) -> tuple[float, float]:
    """Luma of text and background, apart by a draw of `contrast`; the text is the darker in `dark_share` of words."""
    apart = rng.uniform(*contrast)
    low = rng.uniform(5, max(6, 250 - apart))
    pair = (low, min(low + apart, 255.0))
    return pair if rng.random() < dark_share else pair[::-1]


def blend(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """`colour` [3, 1, 1] or [3, h, w] over `image` float32 [3, h, w], as far as `alpha` uint8 [h, w] covers it."""
    mixed = colour - image
    mixed *= alpha.astype(np.float32) * np.float32(1 / 255)
    mixed += image
    return mixed


def _shadow(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, stroke: float, luma: float) -> np.ndarray:
    dx, dy = rng.uniform(0.02, 0.09, 2) * stroke * rng.choice((-1, 1), 2)
    moved = cv2.warpAffine(alpha, np.float32([[1, 0, dx], [0, 1, dy]]), alpha.shape[::-1])
    if rng.random() < 0.6:
        moved = cv2.GaussianBlur(moved, (0, 0), float(rng.uniform(0.5, 0.04 * stroke + 0.8)))
    shade = rng.uniform(0, 60) if luma > 100 or rng.random() < 0.5 else rng.uniform(160, 250)
    moved = cv2.convertScaleAbs(moved, alpha=float(rng.uniform(0.35, 0.8)))
    return blend(image, moved, np.float32(shade))


def _fill(rng: np.random.Generator, colour: np.ndarray, height: int, width: int) -> np.ndarray:
    """A gradient or a texture in place of one colour, float32 [3, h, w]; its luma stays near the colour's."""
    if rng.random() < 0.5:
        luma = float(colour[:, 0, 0] @ LUMA) + float(rng.uniform(-40, 40))
        other = planes(random_colour(rng, min(max(luma, 0.0), 255.0)))
        return colour + linear_ramp(rng, height, width) * (other - colour)
    return np.clip(colour + random_texture(rng, height, width) * np.float32(rng.uniform(6, 16)), 0, 255)


def _clutter(rng: np.random.Generator, image: np.ndarray, stroke: float) -> np.ndarray:
    """One to three straight edges: frames, seams and the borders of signs."""
    _, height, width = image.shape
    image = image.copy()
    for _ in range(int(rng.integers(1, 4))):
        colour = random_colour(rng, float(rng.uniform(0, 255)))
        thick = int(rng.integers(1, max(2, int(stroke * 0.1)) + 1))
        slope = rng.uniform(-0.08, 0.08)
        if rng.random() < 0.7:
            y = float(rng.choice((rng.uniform(0, 0.12), rng.uniform(0.88, 1)))) * height
            ends = (0, round(y - slope * width / 2)), (width - 1, round(y + slope * width / 2))
        else:
            x = rng.uniform(0, 1) * width
            ends = (round(x - slope * height), 0), (round(x + slope * height), height - 1)
        for plane, value in zip(image, colour):
            cv2.line(plane, *ends, float(value), thick)
    return image


def photograph(rng: np.random.Generator, profile: Profile, image: np.ndarray, stroke: float) -> np.ndarray:
    """Light, blur, lose resolution, add noise. float32 [3, h, w] in, uint8 [h, w, 3] out; JPEG comes later.

    stroke: text height in pixels, which bounds the blur: a word that nobody can read teaches nothing.
    """
    _, height, width = image.shape
    draws = rng.random(5)
    if draws[0] < 0.6:
        gain = np.float32(1 - profile.light) + np.float32(2 * profile.light) * linear_ramp(rng, height, width)
        image = image * gain
    if rng.random() < 0.06:  # black-and-white cameras
        image = np.repeat(np.tensordot(LUMA, image, 1)[None], 3, 0)
    photo = cv2.merge([cv2.convertScaleAbs(plane) for plane in np.maximum(image, 0)])  # saturates at 255
    if draws[1] < profile.lowres_share:
        factor = max(rng.uniform(0.45, 0.8), min(1.0, 9 / stroke))
        small = max(4, round(width * factor)), max(4, round(height * factor))
        photo = cv2.resize(cv2.resize(photo, small, interpolation=cv2.INTER_AREA), (width, height))
    if draws[2] < profile.motion_share:
        photo = cv2.filter2D(photo, -1, _motion_kernel(rng, stroke))
    else:
        low, high = profile.blur
        sigma = min(low + (high - low) * draws[3], 0.06 * stroke)
        if sigma > 0.3:
            photo = cv2.GaussianBlur(photo, (0, 0), sigma)
    low, high = profile.noise
    sigma = low + (high - low) * draws[4] ** 2  # mostly little
    if sigma > 0.5:
        noise = window(noise_pool(), rng, height, width) * np.float32(sigma)
        photo = cv2.add(photo, noise, dtype=cv2.CV_8U)
    return photo


def _motion_kernel(rng: np.random.Generator, stroke: float) -> np.ndarray:
    size, angle = 5 if rng.random() < 0.5 and stroke > 24 else 3, rng.uniform(0, np.pi)
    kernel, middle = np.zeros((size, size), np.float32), size // 2
    dx, dy = np.cos(angle) * middle, np.sin(angle) * middle
    cv2.line(kernel, (round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)), 1.0)
    return kernel / kernel.sum()
