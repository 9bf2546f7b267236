"""Whole pictures: a detector of other people finds lines, lines are cut into words, and the reader reads each word.

The detector is PP-OCR's DBNet as the packages `rapidocr` (3.x) and, before it, `rapidocr-onnxruntime` (1.x) ship it. It
is not part of any of the papers here, and nothing is downloaded for it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import cv2
import numpy as np

from common.errors import UserError
from common.infer import pp_ocr

if TYPE_CHECKING:
    from common.infer.recognizer import Prediction

INSTALL = "no text detector is installed; run `pip install 'strlab[detect]'`"
LONGEST_RATIO = 4  # long strips are padded: the detector enlarges the shorter side to 736 pixels, whatever the other is
LEAST_GAP = 0.14  # of the line's height: blank columns that separate words; gaps between letters are narrower


@dataclass(frozen=True)
class Word:
    """One word of a picture.

    Attributes:
        box: float32 [4, 2], the corners (x, y) in pixels of the picture, clockwise from the word's top left.
        prediction: what the reader made of it.
    """

    box: np.ndarray
    prediction: Prediction

    @property
    def text(self) -> str:
        """The characters that were read, at least one."""
        return self.prediction.text

    @property
    def confidence(self) -> float:
        """In [0, 1]: the reader's confidence; the detector's own is not part of it."""
        return self.prediction.confidence


class Detector:
    """Finds lines of text.

    Args:
        lines: from uint8 BGR [h, w, 3] to the lines' corners [N, 4, 2] in pixels.
        name: who made it, with the version; for reports and the page.
    """

    def __init__(self, lines: Callable[[np.ndarray], Sequence], name: str) -> None:
        self._lines, self.name = lines, name
        self._lock = threading.Lock()  # RapidOCR keeps the picture's scale in an attribute

    def lines(self, image: np.ndarray) -> np.ndarray:
        """The lines in a picture uint8 RGB [h, w, 3]: corners float32 [N, 4, 2], in reading order."""
        height, width = image.shape[:2]
        down, right = max(0, width // LONGEST_RATIO - height), max(0, height // LONGEST_RATIO - width)
        padded = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REPLICATE)
        with self._lock:
            found = self._lines(np.ascontiguousarray(padded[:, :, ::-1]))
        if found is None or len(found) == 0:
            return np.zeros((0, 4, 2), np.float32)
        boxes = np.clip(np.asarray(found, np.float32), 0, (width, height))
        sides = np.linalg.norm(boxes - np.roll(boxes, 1, axis=1), axis=2)
        return in_reading_order(boxes[sides.min(axis=1) >= 2])  # what lay in the padding has no height left

    def words(self, image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The words in a picture uint8 RGB [h, w, 3]: corners float32 [N, 4, 2], and the N straightened crops."""
        boxes, crops = [], []
        for line in self.lines(image):
            straight = straightened(image, line)
            if straight.shape[0] > 1.5 * straight.shape[1]:  # upright text is read from the top down
                line = np.roll(line, -1, axis=0)
                straight = np.ascontiguousarray(np.rot90(straight))
            for start, stop in split(straight):
                share = np.array([start, stop], np.float32)[:, None] / straight.shape[1]
                top, bottom = (
                    edge[0] * (1 - share) + edge[1] * share for edge in ((line[0], line[1]), (line[3], line[2]))
                )
                boxes.append([top[0], top[1], bottom[1], bottom[0]])
                crops.append(np.ascontiguousarray(straight[:, start:stop]))
        return np.asarray(boxes, np.float32).reshape(-1, 4, 2), crops


@functools.cache
def detector() -> Detector:
    """The installed detector, opened once. Raises `UserError` with the command that installs one."""
    name = pp_ocr.installed()
    if not name:
        raise UserError(INSTALL)
    engine, how = pp_ocr.engine(name), {"use_det": True, "use_cls": False, "use_rec": False}
    shown = f"DBNet of PP-OCR ({name.replace('_', '-')} {metadata.version(name)})"
    if name == "rapidocr":
        return Detector(lambda image: engine(image, **how).boxes, shown)
    return Detector(lambda image: engine(image, **how)[0], shown)


def in_reading_order(boxes: np.ndarray) -> np.ndarray:
    """Sort boxes [N, 4, 2] into rows from the top down, and within a row from left to right. A box belongs to a row
    where its centre lies within the height of the row's first box."""
    rows: list[tuple[float, float, list[np.ndarray]]] = []
    for box in sorted(boxes, key=lambda box: float(box[:, 1].mean())):
        middle = float(box[:, 1].mean())
        if rows and rows[-1][0] <= middle <= rows[-1][1]:
            rows[-1][2].append(box)
        else:
            half = float(np.linalg.norm(box[3] - box[0])) / 2
            rows.append((middle - half, middle + half, [box]))
    ordered = [box for _, _, row in rows for box in sorted(row, key=lambda box: float(box[:, 0].min()))]
    return np.asarray(ordered, np.float32).reshape(-1, 4, 2)


def straightened(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of a picture [h, w, 3] inside four corners [4, 2] as a level rectangle."""
    width = max(2, round(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3]))))
    height = max(2, round(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2]))))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(np.asarray(box, np.float32), corners)
    return cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def split(line: np.ndarray) -> list[tuple[int, int]]:
    """Columns (start, stop) of the words in a straightened line uint8 [h, w, 3].

    Columns whose brightness hardly changes from top to bottom are blank. A run of blank columns separates two words
    where it is wide for the line's height and for the other gaps of the line, so that spaced letters stay together. On
    a restless ground there are no blank columns and the line stays whole.
    """
    height, width = line.shape[:2]
    grey = cv2.GaussianBlur(cv2.cvtColor(line, cv2.COLOR_RGB2GRAY), (3, 3), 0).astype(np.float32)
    grey = grey[round(0.1 * height) : max(round(0.9 * height), round(0.1 * height) + 1)]  # not the neighbouring lines
    change = grey.max(axis=0) - grey.min(axis=0)
    ink = np.flatnonzero(change >= max(0.25 * float(np.percentile(change, 90)), 12.0))
    if not len(ink):
        return [(0, width)]
    gaps = np.diff(ink) - 1
    narrow = gaps[(gaps > 0) & (gaps < LEAST_GAP * height)]
    wide = gaps[gaps >= LEAST_GAP * height]
    usual = float(np.median(narrow)) if len(narrow) else float(wide.min()) if len(wide) > 2 else 0.0
    space = 0.6 * min(float(np.median(wide)), 0.5 * height) if len(wide) else 0.0  # spaces are about equally wide
    cuts = np.flatnonzero(gaps >= max(LEAST_GAP * height, 2 * usual, space))
    margin = round(0.08 * height)
    starts, stops = [ink[0], *ink[cuts + 1]], [*ink[cuts], ink[-1]]
    return [(max(0, int(start) - margin), min(width, int(stop) + 1 + margin)) for start, stop in zip(starts, stops)]
