"""Where the pixels of a flat line of text go: an arc or a wave, then a homography."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from common.data.synth.options import Profile


@dataclass
class Warp:
    """A map from line pixels to crop pixels. `bend` comes first, `matrix` (3x3, forward) second."""

    matrix: np.ndarray
    arc: float = 0.0  # signed angle between the ends of the line, radians; above 0 the middle is highest
    wave: tuple[float, float] = (0.0, 0.0)  # amplitude in pixels, phase
    size: tuple[int, int] = (1, 1)  # of the line, width and height

    def forward(self, points: np.ndarray) -> np.ndarray:
        """Line points [n, 2] to crop points [n, 2]."""
        x, y = self._bend(points[:, 0].astype(np.float64), points[:, 1].astype(np.float64))
        m = self.matrix
        w = m[2, 0] * x + m[2, 1] * y + m[2, 2]
        return np.stack([(m[0, 0] * x + m[0, 1] * y + m[0, 2]) / w, (m[1, 0] * x + m[1, 1] * y + m[1, 2]) / w], 1)

    def _bend(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width, height = self.size
        if self.arc:
            radius, centre = width / self.arc, height / 2
            angle = (x - width / 2) / radius
            r = radius + centre - y
            x, y = width / 2 + r * np.sin(angle), centre + radius - r * np.cos(angle)
        amplitude, phase = self.wave
        if amplitude:
            y = y + amplitude * np.sin(2 * np.pi * x / width + phase)
        return x, y

    def apply(self, line: np.ndarray, width: int, height: int) -> np.ndarray:
        """Draw the line, uint8 [h, w], into a crop of `height` x `width`."""
        if not self.arc and not self.wave[0]:
            return cv2.warpPerspective(line, self.matrix, (width, height), flags=cv2.INTER_LINEAR)
        inverse = np.linalg.inv(self.matrix)
        x, y = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
        i = inverse.astype(np.float32)
        w = i[2, 0] * x + i[2, 1] * y + i[2, 2]
        u, v = (i[0, 0] * x + i[0, 1] * y + i[0, 2]) / w, (i[1, 0] * x + i[1, 1] * y + i[1, 2]) / w
        u, v = self._unbend(u, v)
        return cv2.remap(line, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, borderValue=0)

    def _unbend(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width, height = self.size
        amplitude, phase = self.wave
        if amplitude:
            v = v - amplitude * np.sin(2 * np.pi * u / width + phase)
        if self.arc:
            radius, centre = width / self.arc, height / 2
            sign = 1.0 if radius > 0 else -1.0
            dx, dy = (u - width / 2) * sign, (centre + radius - v) * sign
            r = sign * np.hypot(dx, dy)
            u, v = np.arctan2(dx, dy) * radius + width / 2, radius + centre - r
        return u, v


def random_warp(rng: np.random.Generator, profile: Profile, width: int, height: int, letters: int) -> Warp:
    """Draw a warp for a line of `width` x `height`; it still has to be scaled and moved by `place`."""
    turn, shear, stretch, tip_x, tip_y = rng.standard_normal(5).clip(-2.2, 2.2)
    # A long word that is turned as much as a short one makes a tall, mostly empty crop.
    angle = np.deg2rad(turn * profile.rotate) * min(1.0, 6.0 / letters + 0.25)
    cos, sin = np.cos(angle), np.sin(angle)
    centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    affine = np.array([[np.exp(stretch * profile.stretch), shear * profile.shear, 0], [0, 1, 0], [0, 0, 1]])
    tilt = np.eye(3)
    tilt[2, 0] = np.clip(tip_x * profile.perspective, -0.33, 0.33) / (width / 2)
    tilt[2, 1] = np.clip(tip_y * profile.perspective, -0.33, 0.33) / max(height, width / 3)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    warp = Warp(rotation @ tilt @ affine @ centre, size=(width, height))
    bend, amount, phase = rng.random(3)
    if bend < profile.arc_share and letters > 2:
        # A quarter of arcs are smiles; a short word takes a smaller angle, or its letters would fan out.
        largest = np.deg2rad(profile.arc) * min(1.0, letters / 6)
        warp.arc = largest * (0.35 + 0.65 * amount) * (-1.0 if phase < 0.25 else 1.0)
    elif bend < profile.arc_share + profile.wave_share and letters > 2:
        warp.wave = (height * (0.08 + 0.12 * amount), 2 * np.pi * phase)
    return warp


def place(
    warp: Warp, boxes: np.ndarray, text_height: float, padding: np.ndarray, limit: tuple[int, int] = (128, 512)
) -> tuple[np.ndarray, int, int]:
    """Scale and move `warp` so that the line is `text_height` pixels tall, and find the crop around it.

    boxes: float [n, 4] of the letters on the line. padding: shares of the text height left, top, right, bottom.
    limit: greatest height and width of the crop; a larger one is scaled down.
    Returns the boxes in the crop, float64 [n, 4], and the crop's width and height; `warp` is changed in place.
    """
    x1, y1, x2, y2 = boxes.T
    mx, my = (x1 + x2) / 2, (y1 + y2) / 2
    xs, ys = np.stack([x1, mx, x2, x2, x2, mx, x1, x1]), np.stack([y1, y1, y1, my, y2, y2, y2, my])
    points = warp.forward(np.stack([xs.ravel(), ys.ravel()], 1)).reshape(8, -1, 2)
    low, high = points.min(0), points.max(0)
    scale = text_height / (y2.max() - y1.min())
    corner, far = low.min(0), high.max(0)
    margins = padding * text_height
    size = (far - corner) * scale + margins[:2] + margins[2:]
    shrink = min(1.0, limit[0] / size[1], limit[1] / size[0])
    scale, margins, size = scale * shrink, margins * shrink, size * shrink
    move = margins[:2] - corner * scale
    warp.matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]], [0, 0, 1]]) @ warp.matrix
    width, height = max(8, int(np.ceil(size[0]))), max(8, int(np.ceil(size[1])))
    return np.concatenate([low * scale + move, high * scale + move], 1), width, height
