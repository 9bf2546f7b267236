"""A contact sheet of a corpus: crops of every part, and below them the same kind with masks and boxes drawn in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.data.decode import decode_mask, load, open_picture
from common.data.lmdb import WordLmdb
from common.data.synth.options import Part
from common.files import write_bytes

_WIDTH, _ROW, _GAP, _TITLE = 1400, 48, 4, 18
_PAPER, _INK = (250, 250, 248), (30, 30, 30)


def write_sheet(root: Path, parts: list[Part], rows: int = 3) -> Path:
    """Write `contact_sheet.png` into a corpus and return its path: per part `rows` rows of crops, one of truth."""
    bands = []
    for part in parts:
        data = WordLmdb(root / part.folder)
        bands.append(_title(f"{part.folder}   {len(data):,} crops   synthetic"))
        crops = ((_rgb(data.image_bytes(i)), data.label(i)) for i in range(len(data)))
        bands.append(_rows(crops, rows))
        half = len(data) // 2
        truth = ((_with_truth(data, i), data.label(i)) for i in range(half, len(data)))
        bands.append(_rows(truth, 1))
        data.close()
    sheet = Image.new("RGB", (_WIDTH, sum(band.height for band in bands)), _PAPER)
    y = 0
    for band in bands:
        sheet.paste(band, (0, y))
        y += band.height
    png = cv2.imencode(".png", np.asarray(sheet)[:, :, ::-1])[1].tobytes()  # quicker than Pillow's
    return write_bytes(root / "contact_sheet.png", png)


def draw_truth(image: np.ndarray, mask: np.ndarray, boxes: list, zoom: int = 2) -> Image.Image:
    """The crop enlarged `zoom` times, letters tinted green by the mask, boxes in red. image uint8 [h, w, 3]."""
    tinted = image.copy()
    tinted[mask > 0] = (tinted[mask > 0] * 0.35 + np.array([0, 165, 60])).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(tinted).resize((image.shape[1] * zoom, image.shape[0] * zoom), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for x1, y1, x2, y2, *_ in boxes:
        draw.rectangle((x1 * zoom, y1 * zoom, x2 * zoom - 1, y2 * zoom - 1), outline=(230, 20, 20))
    return picture


def _rgb(data: bytes) -> Image.Image:
    return load(open_picture(data), "RGB")


def _with_truth(data: WordLmdb, index: int) -> Image.Image:
    mask = decode_mask(data.value("mask", index))
    boxes = json.loads(data.value("boxes", index))
    return draw_truth(np.asarray(_rgb(data.image_bytes(index))), mask, boxes)


def _title(text: str) -> Image.Image:
    band = Image.new("RGB", (_WIDTH, _TITLE), (225, 225, 220))
    ImageDraw.Draw(band).text((6, 3), text, fill=_INK, font=ImageFont.load_default(12))
    return band


def _rows(crops: Iterable[tuple[Image.Image, str]], rows: int) -> Image.Image:
    """Crops of one height side by side with their labels below, as many as fit."""
    font = ImageFont.load_default(11)
    line = _ROW + 16
    band = Image.new("RGB", (_WIDTH, rows * line), _PAPER)
    draw, x, y = ImageDraw.Draw(band), _GAP, _GAP
    for crop, label in crops:
        shown = crop.resize((max(8, round(crop.width * _ROW / crop.height)), _ROW), Image.Resampling.BILINEAR)
        wide = max(shown.width, int(draw.textlength(label, font)))
        if x + wide > _WIDTH:
            x, y = _GAP, y + line
            if y + line > rows * line + _GAP:
                break
        band.paste(shown, (x, y))
        draw.text((x, y + _ROW), label, fill=_INK, font=font)
        x += wide + 2 * _GAP
    return band
