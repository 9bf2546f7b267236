"""Attention pictures: what each granularity looked at for each of its tokens, and ACDS-STR's character map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from common.infer.pictures import attention_sheet, heat
from common.infer.recognizer import Prediction

TITLES = {"char": "characters", "bpe": "BPE", "wp": "WordPiece"}
HEADER = 40


def published_sheet(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The picture of the published demo: two columns, each tile scaled to its own range, gaps of two pixels.

    The first line has the crop and the sum of all maps over it; then comes one line for each character with its map in
    grey and over the crop. A map over the crop is half the crop and half the jet colours of the map's own range.

    Args:
        image: crop, uint8 [32, 128, 3] RGB.
        maps: attention of the characters that were read, float [n, h, w] in [0, 1].
    """
    from torchvision.utils import make_grid

    height, width = image.shape[:2]
    grey = (np.asarray(maps, np.float32).reshape(-1, *maps.shape[-2:]) * 255).astype(np.uint8)  # truncated
    tiles = [image, _over(image, grey.sum(0, dtype=np.float32))]
    for one in grey:
        large = cv2.resize(one, (width, height), interpolation=cv2.INTER_NEAREST)
        tiles += [np.repeat(large[..., None], 3, axis=2), _over(image, one.astype(np.float32))]
    batch = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float()
    grid = make_grid(batch, nrow=2, normalize=True, scale_each=True)
    return grid.mul(255).add(0.5).clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()


def _over(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Half the crop, half the jet colours of a map [h, w] stretched to its own range."""
    low, high = float(attention.min()), float(attention.max())
    scaled = (attention - low) / (high - low) if high > low else np.zeros_like(attention)
    scaled = cv2.resize(scaled, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_JET)[:, :, ::-1]
    return (0.5 * image + 0.5 * colours).astype(np.uint8)


def with_title(picture: np.ndarray, title: str) -> np.ndarray:
    """A line of text above a picture uint8 [H, W, 3]."""
    sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + HEADER), "white")
    ImageDraw.Draw(sheet).text((8, HEADER / 2), title, "black", font=ImageFont.load_default(size=20), anchor="lm")
    sheet.paste(Image.fromarray(picture), (0, HEADER))
    return np.asarray(sheet)


def side_by_side(pictures: Sequence[np.ndarray], gap: int = 12) -> np.ndarray:
    """Pictures uint8 [h, w, 3] side by side on white, tops in one line."""
    height = max(picture.shape[0] for picture in pictures)
    columns = []
    for picture in pictures:
        below, right = height - picture.shape[0], gap if picture is not pictures[-1] else 0
        columns.append(np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=255))
    return np.concatenate(columns, axis=1)


def head_sheets(image: np.ndarray, prediction: Prediction, most: int = 40) -> dict[str, np.ndarray]:
    """For each granularity its maps over the picture uint8 [32, 128, 3], one line for each token and the end.

    `prediction` was read with attention; `most` lines at most. Empty readings give the picture and the end.
    """
    maps: Mapping[str, np.ndarray] = prediction.extra.get("maps", {})
    tokens: Mapping[str, Sequence[str]] = prediction.extra.get("tokens", {})
    sheets = {}
    for name, values in maps.items():
        reading = prediction.extra[name]
        sheet = attention_sheet(image, values, list(tokens[name])[:most])
        sheets[name] = with_title(sheet, f"{TITLES[name]}: {reading['text'][:24]} {reading['confidence']:.3f}")
    return sheets


def demo_sheet(image: np.ndarray, prediction: Prediction, character_map: np.ndarray | None = None) -> np.ndarray:
    """One sheet for an image: the columns of all granularities, or ACDS-STR's map [32, 128] over it."""
    sheets = list(head_sheets(image, prediction).values())
    if character_map is not None:
        pair = [cv2.resize(one, None, fx=3, fy=3) for one in (image, heat(image, character_map))]
        sheets.append(with_title(np.concatenate(pair), f"character map: {prediction.text} {prediction.confidence:.3f}"))
    return side_by_side(sheets)
