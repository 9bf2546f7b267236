"""`strlab data augment-sheet OUT.png --recipe NAME`: what an augmentation recipe does to a few word crops.

The first column is the crop; the others are draws of the recipe. `--each` draws every operation of the STR family at
its three magnitudes instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.augment import randaugment, recipes, views
from common.augment.rng import Rng
from common.data.decode import BadImage, decode_rgb
from common.errors import UserError
from common.files import read_regular, write_bytes

Augmenter = Callable[..., np.ndarray]
RECIPES: dict[str, Callable[[], Augmenter]] = {
    "abinet": lambda: recipes.abinet(resample=True),
    "abinet-once": recipes.abinet,
    "original": lambda: recipes.rand_augment(intact_prob=0),
    "siga": lambda: recipes.rand_augment("siga", intact_prob=0),
    "straug": lambda: recipes.rand_augment("straug", intact_prob=0),
    "fast": lambda: recipes.rand_augment(intact_prob=0, fast=True),
    "ssm": lambda: recipes.rand_augment("ssm", recipes.SSM_GROUPS, intact_prob=0),
    "still": lambda: recipes.rand_augment(groups=recipes.STILL_GROUPS, intact_prob=0),
    "selective": lambda: recipes.selective(["weather", "blur", "warp"], intact_prob=0),
    "contrastive": views.ContrastiveView,
}
_CELL = (48, 160)
_MARGIN = 4
_WORDS = ("Reading", "COFFEE", "24-hours", "Street", "Exit", "university", "No.7", "OPEN")


def crops(count: int = 8) -> list[np.ndarray]:
    """Words on plain and shaded grounds, uint8 32x128x3."""
    pictures = []
    for index in range(count):
        rng = np.random.default_rng(index)
        back, ink = rng.integers(120, 256, 3), rng.integers(0, 100, 3)
        shade = np.linspace(0.75, 1.0, 128)[None, :, None] * (back if index % 3 else ink)
        ground = np.broadcast_to(shade, (32, 128, 3)).astype(np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(ground))
        font = ImageFont.load_default(size=24)
        text, color = _WORDS[index % len(_WORDS)], tuple((ink if index % 3 else back).tolist())
        ImageDraw.Draw(picture).text((64, 16), text, color, font=font, anchor="mm")
        pictures.append(np.array(picture))
    return pictures


def read_images(folder: Path) -> list[np.ndarray]:
    """The images of a folder, as uint8 HxWx3. Raises UserError if there are none."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            found.append(decode_rgb(read_regular(path)))
        except (OSError, BadImage) as error:
            print(f"{path}: skipped: {error}")
    if not found:
        raise UserError(f"--images: {folder}: no readable image there; name a folder of word crops")
    return found


def grid(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Rows of pictures of any size on one sheet, each fitted into its cell."""
    height, width = _CELL
    step_y, step_x = height + _MARGIN, width + _MARGIN
    sheet = np.full((len(rows) * step_y + _MARGIN, max(map(len, rows)) * step_x + _MARGIN, 3), 40, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            scale = min(height / picture.shape[0], width / picture.shape[1])
            size = max(int(picture.shape[1] * scale), 1), max(int(picture.shape[0] * scale), 1)
            cell = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
            top, left = _MARGIN + y * step_y, _MARGIN + x * step_x
            sheet[top : top + size[1], left : left + size[0]] = cell
    return sheet


def recipe_sheet(name: str, images: list[np.ndarray], columns: int, seed: int) -> np.ndarray:
    """One row per image: the image and `columns` draws of the recipe."""
    augment = RECIPES[name]()
    rng = np.random.default_rng(seed)
    return grid([[image, *(augment(image, rng) for _ in range(columns))] for image in images])


def operation_sheet(image: np.ndarray, seed: int, preset: str) -> np.ndarray:
    """Every operation of the STR family at magnitudes 0, 1, 2, two operations a row."""
    rng: Rng = np.random.default_rng(seed)
    cells = []
    for operation in randaugment.OPERATIONS.values():
        cells.append([image, *(operation(image, rng, magnitude, preset=preset) for magnitude in range(3))])
    return grid([left + right for left, right in zip(cells[::2], [*cells[1::2], []])])


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("augment-sheet", help="draw what an augmentation recipe does", description=__doc__)
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--recipe", default="original", choices=sorted(RECIPES), help="default: %(default)s")
    parser.add_argument("--each", action="store_true", help="every operation on its own; --recipe names its preset")
    parser.add_argument("--images", type=Path, metavar="DIR", help="word crops to use; without it eight drawn words")
    parser.add_argument("--columns", type=int, default=8, help="draws per image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other variations (default 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the sheet; prints its path."""
    images = read_images(args.images)[:16] if args.images else crops()
    if args.each:
        preset = args.recipe if args.recipe in randaugment.PRESETS else "original"
        small = cv2.resize(images[0], (128, 32), interpolation=cv2.INTER_AREA)
        sheet = operation_sheet(small, args.seed, preset)
    else:
        sheet = recipe_sheet(args.recipe, images, max(args.columns, 1), args.seed)
    write_bytes(args.out, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    print(f"{args.out}: {sheet.shape[1]}x{sheet.shape[0]}, recipe {args.recipe}")
    return 0
