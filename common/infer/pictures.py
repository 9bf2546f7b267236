"""Pictures that show what a reader looked at: attention per character over the crop, masks, contact sheets."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Twelve well-separated colours (RGB) for characters and glyph channels; they repeat after twelve.
PALETTE = np.array(
    [
        (230, 65, 70),
        (60, 160, 75),
        (70, 105, 215),
        (240, 150, 40),
        (150, 70, 180),
        (60, 190, 210),
        (220, 80, 180),
        (150, 190, 50),
        (110, 90, 60),
        (20, 130, 130),
        (245, 205, 60),
        (120, 120, 130),
    ],
    dtype=np.uint8,
)


def heat(image: np.ndarray, attention: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """Lay one map over a crop: uint8 [h, w, 3] and float [h', w'] (any scale) -> uint8 [h, w, 3], warm where it is
    high."""
    height, width = image.shape[:2]
    scaled = cv2.resize(np.asarray(attention, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    low, high = float(scaled.min()), float(scaled.max())
    scaled = (scaled - low) / (high - low) if high > low else np.zeros_like(scaled)
    colours = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    weight = strength * scaled[..., None]
    return np.clip(image * (1 - strength * 0.35) * (1 - weight) + colours * weight, 0, 255).astype(np.uint8)


def attention_strip(image: np.ndarray, attention: np.ndarray, most: int = 26, columns: int = 4) -> np.ndarray:
    """The crop once for each map [T, h, w], `columns` a line, reading order: uint8 [H, W, 3] on white."""
    maps = np.asarray(attention, np.float32)[:most]
    if maps.ndim == 2:  # one row of positions for each character
        maps = maps[:, None, :]
    return tile([heat(image, one) for one in maps], columns)


def attention_sheet(image: np.ndarray, attention: np.ndarray, text: Sequence[str], scale: int = 3) -> np.ndarray:
    """A sheet for one image: the crop above, then one line for each token of `text` with the token next to it."""
    maps = np.asarray(attention, np.float32)
    maps = maps[:, None, :] if maps.ndim == 2 else maps
    height, width = image.shape[0] * scale, image.shape[1] * scale
    font, gap = ImageFont.load_default(size=24), 4
    margin = 16 + int(max(font.getlength(name) for name in ["m", "end", *text]))  # tokens may be whole words
    lines = [enlarge(image, scale), *(heat(enlarge(image, scale), one) for one in maps[: len(text) + 1])]
    sheet = Image.new("RGB", (margin + width, (height + gap) * len(lines) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (line, name) in enumerate(zip(lines, ["", *text, "end"])):
        top = number * (height + gap)
        sheet.paste(Image.fromarray(line), (margin, top))
        draw.text((margin / 2, top + height / 2), name, "black", font=font, anchor="mm")
    return np.asarray(sheet)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """A crop `factor` times as large, bicubic."""
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def label_colours(labels: np.ndarray) -> np.ndarray:
    """Integer labels [h, w] (0 = background, black) as colours uint8 [h, w, 3]."""
    labels = np.asarray(labels).astype(np.int64)
    return np.where(labels[..., None] > 0, PALETTE[(labels - 1) % len(PALETTE)], np.uint8(0)).astype(np.uint8)


def as_picture(array: np.ndarray) -> np.ndarray:
    """Anything flat as a picture: uint8 stays, integers or bool become label colours, floats a grey image from low to
    high."""
    array = np.asarray(array)
    if array.dtype == np.uint8 and array.ndim == 3:
        return array
    if array.dtype.kind in "iub":
        return label_colours(array)
    low, high = float(array.min()), float(array.max())
    grey = ((array - low) / (high - low if high > low else 1.0) * 255).astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def tile(images: Sequence[np.ndarray], columns: int, gap: int = 3) -> np.ndarray:
    """Pictures of one size in rows of `columns` on white: uint8 [H, W, 3]. Without pictures a single white pixel."""
    if not images:
        return np.full((1, 1, 3), 255, np.uint8)
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 array [h, w] or [h, w, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def annotated(image: np.ndarray, words: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """A picture uint8 [h, w, 3] with the box, corners [4, 2] in pixels, and the text of each word drawn over it."""
    sheet = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(sheet)
    height, width = image.shape[:2]
    thick = max(1, round(max(image.shape[:2]) / 600))
    colours = [tuple(int(value) for value in PALETTE[number % len(PALETTE)]) for number in range(len(words))]
    taken = [(*np.min(box, 0), *np.max(box, 0)) for box, _ in words]  # the words, then the labels too
    for (box, _), colour in zip(words, colours):
        corners = [(float(x), float(y)) for x, y in box]
        draw.line([*corners, corners[0]], colour, thick, joint="curve")
    for number, ((box, text), colour) in enumerate(zip(words, colours)):
        left, top, right, bottom = (float(value) for value in taken[number])
        size = float(np.clip(0.5 * np.linalg.norm(np.asarray(box[3]) - box[0]), 11, 0.03 * max(height, width) + 6))
        sizes = [size, max(11.0, 0.7 * size)]
        places = [(left, top - 2, "lb"), (right, top - 2, "rb"), (left, bottom + 2, "lt"), (right, bottom + 2, "rt")]
        areas = []
        for size in sizes:  # the label goes where it covers least: above or below, to the left or right, or smaller
            font = ImageFont.load_default(size=size)
            areas += [(draw.textbbox((x, y), text or "?", font=font, anchor=a), font, (x, y), a) for x, y, a in places]
        area, font, place, anchor = min(areas, key=lambda one: _covered(one[0], taken, (width, height)))
        taken.append(area)
        draw.rectangle((area[0] - 2, area[1] - 1, area[2] + 2, area[3] + 1), fill=colour)
        draw.text(place, text or "?", "white", font=font, anchor=anchor)
    return np.asarray(sheet)


def _covered(area: tuple[float, ...], taken: Sequence[tuple[float, ...]], size: tuple[int, int]) -> float:
    """Pixels of other rectangles (left, top, right, bottom) that one covers, and of its own outside the picture."""
    left, top, right, bottom = area

    def common(one: Sequence[float]) -> float:
        wide, high = min(right, one[2]) - max(left, one[0]), min(bottom, one[3]) - max(top, one[1])
        return max(0.0, wide) * max(0.0, high)

    outside = (right - left) * (bottom - top) - common((0, 0, *size))
    return outside + sum(common(one) for one in taken)


def captioned(
    words: Sequence[tuple[np.ndarray, str]], columns: int = 6, cell: tuple[int, int] = (64, 200)
) -> np.ndarray:
    """Crops uint8 [h, w, 3] of any size in rows of `columns`, each fitted into `cell` = (height, width) with its text
    below: uint8 [H, W, 3] on white."""
    font, gap, caption = ImageFont.load_default(size=20), 12, 30
    height, width = cell
    columns = max(1, min(columns, len(words)))
    rows = -(-len(words) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + caption + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (crop, text) in enumerate(words):
        top, left = (
            step * index + gap for step, index in zip((height + caption + gap, width + gap), divmod(number, columns))
        )
        scale = min(height / crop.shape[0], width / crop.shape[1])
        size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
        fitted = Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC)
        sheet.paste(fitted, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))
        draw.text((left + width / 2, top + height + 4), text or "(nothing)", "black", font=font, anchor="ma")
    return np.asarray(sheet)
