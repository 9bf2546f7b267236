"""The shop front at the head of the README, drawn, and what `strlab read --detect` finds and reads on it.

    python docs/sign.py                        # writes docs/images/sign.jpg and docs/images/sign-words.png

The second picture is what `strlab read --detect docs/images/sign.jpg --draw docs/images/sign-words.png` writes. Wrong
readings stay in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import main as strlab
from common.data.synth.fonts import find_faces

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images"
SIZE = 960, 530
BOARD = (("Fresh bread", 46), ("and warm soup", 40), ("every day", 40), ("from 7.30", 38))


def font(family: str, size: int) -> ImageFont.FreeTypeFont:
    """A face of the embedded corpus."""
    families = ("lobster", "caveat", "oswald", "bebas_neue", "montserrat")
    return next(face for face in find_faces(families, "abc") if face.family == family).open(size)


def wall(rng: np.random.Generator) -> Image.Image:
    """Bricks of slightly different colours, with light from the left."""
    image = Image.new("RGB", SIZE, (120, 92, 80))
    draw = ImageDraw.Draw(image)
    for row, top in enumerate(range(0, SIZE[1], 18)):
        for left in range(-54 + 27 * (row % 2), SIZE[0], 54):
            colour = tuple(int(value) for value in np.array([158, 88, 70]) + rng.normal(0, 8))
            draw.rectangle((left, top, left + 51, top + 15), colour)
    light = np.linspace(1.1, 0.75, SIZE[0])[None, :, None]
    return Image.fromarray(np.clip(np.asarray(image) * light, 0, 255).astype(np.uint8))


def panel(size: tuple[int, int], colour: str, edge: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A board with an edge, and what draws on it."""
    image = Image.new("RGB", size, edge)
    draw = ImageDraw.Draw(image)
    draw.rectangle((7, 7, size[0] - 8, size[1] - 8), colour)
    return image, draw


def hang(scene: np.ndarray, board: Image.Image, corners: list[tuple[int, int]]) -> np.ndarray:
    """Put a board into the scene, its corners clockwise from the top left."""
    width, height = board.size
    source = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    matrix = cv2.getPerspectiveTransform(source, np.float32(corners))
    mask = cv2.warpPerspective(np.ones((height, width), np.float32), matrix, SIZE, flags=cv2.INTER_AREA)[..., None]
    warped = cv2.warpPerspective(np.asarray(board), matrix, SIZE, flags=cv2.INTER_AREA)
    return (scene * (1 - mask) + warped * mask).astype(np.uint8)


def shop() -> np.ndarray:
    """The scene, uint8 RGB."""
    rng = np.random.default_rng(3)
    scene = np.asarray(wall(rng))
    name, draw = panel((820, 150), "#1f4a45", "#d9b45a")
    draw.text((410, 75), "Harbour Coffee", "#f6ecd2", font=font("lobster", 80), anchor="mm")
    scene = hang(scene, name, [(60, 52), (905, 30), (905, 178), (60, 196)])
    menu, draw = panel((400, 270), "#22262a", "#8a6a44")
    for line, (text, size) in enumerate(BOARD):
        draw.text((200, 48 + 62 * line), text, "#f2f2ea", font=font("caveat", size + 6), anchor="mm")
    scene = hang(scene, menu, [(88, 246), (424, 240), (430, 500), (84, 508)])
    plate, draw = panel((420, 90), "#23479a", "white")
    draw.text((210, 46), "QUAY STREET 12", "white", font=font("oswald", 50), anchor="mm")
    scene = hang(scene, plate, [(520, 236), (884, 222), (886, 300), (520, 310)])
    door, draw = panel((300, 120), "#f4f1e6", "#a32c22")
    draw.text((150, 40), "OPEN", "#a32c22", font=font("bebas_neue", 58), anchor="mm")
    draw.text((150, 88), "Monday to Saturday", "#222222", font=font("montserrat", 23), anchor="mm")
    scene = hang(scene, door, [(560, 360), (838, 352), (840, 470), (562, 474)])
    return cv2.GaussianBlur(scene, (0, 0), 0.8)


def main() -> int:
    """Draw, then read as a user would."""
    Image.fromarray(shop()).save(OUT / "sign.jpg", quality=88)
    return strlab(["read", "--detect", str(OUT / "sign.jpg"), "--draw", str(OUT / "sign-words.png")])


if __name__ == "__main__":
    raise SystemExit(main())
