"""The picture on the page of the default reader: rendered words, and what each reader made of them.

    python docs/words.py                       # the shipped readers, and every finished `make reproduce-NAME`
    python docs/words.py ssm=outputs/ssm/gpu   # and others, as `strlab compare` takes them

The words are in the manner of the six public sets, in fonts that the embedded corpus keeps for evaluation. Wrong
readings are red.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.data.synth import SynthOptions, render_word
from common.files import write_bytes
from common.infer import shipped
from common.infer.pictures import png
from common.infer.recognizer import Recognizer, open_recognizer
from common.report.compare import named

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images" / "words.png"
WORDS = (
    ("Morning", "IIIT5k_3000"), ("STREET", "SVT"), ("coffee", "IC13_857"), ("Parking", "IC15_1811"),
    ("HARBOUR", "SVTP"), ("Welcome", "CUTE80"), ("24hours", "IIIT5k_3000"), ("Library", "SVT"),
    ("exit", "IC13_857"), ("Museum", "IC15_1811"), ("Garden", "SVTP"), ("PIZZERIA", "CUTE80"),
)  # fmt: skip
COLUMNS, CELL, GAP, LINE = 4, (72, 220), 16, 22


def crops() -> list[tuple[str, np.ndarray]]:
    """The words with their pictures uint8 RGB [h, w, 3]."""
    options = SynthOptions(difficulty="medium")
    return [(text, render_word(text, options, seed=i, style=style).image) for i, (text, style) in enumerate(WORDS)]


def sheet(words: Sequence[tuple[str, np.ndarray]], readings: Sequence[tuple[str, Sequence[str]]]) -> np.ndarray:
    """The picture: below each word a line for each reader, (label, its readings); uint8 RGB."""
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=13)
    height, width = CELL
    block = height + LINE * len(readings) + GAP
    rows = -(-len(words) // COLUMNS)
    image = Image.new("RGB", (COLUMNS * (width + GAP) + GAP, rows * block + GAP), "white")
    draw = ImageDraw.Draw(image)
    for number, (truth, crop) in enumerate(words):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (width + GAP), GAP + row * block
        scale = min(height / crop.shape[0], width / crop.shape[1])
        size = (round(crop.shape[1] * scale), round(crop.shape[0] * scale))
        fitted = Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC)
        image.paste(fitted, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))
        for line, (label, texts) in enumerate(readings):
            y = top + height + 4 + LINE * line
            colour = "black" if texts[number].lower() == truth.lower() else (190, 30, 30)
            draw.text((left, y + 4), label, (110, 115, 125), font=small)
            draw.text((left + width, y), texts[number] or "(nothing)", colour, font=font, anchor="ra")
    return np.asarray(image)


def readers(arguments: Sequence[str]) -> list[tuple[str, Recognizer]]:
    """The shipped readers, those of finished reproductions, and those of the arguments."""
    found = [(one.name, str(one.path)) for one in shipped.all_shipped()]
    runs = sorted(path.parent for path in (ROOT / "outputs").glob("*/*/finished.json"))
    found += [named(f"{run.parent.name}={run}") for run in runs] + [named(text) for text in arguments]
    return [(label, open_recognizer(path, engine="torch")) for label, path in found]


def main() -> None:
    """Render, read, draw."""
    words = crops()
    images = [crop for _, crop in words]
    readings = [(label, [one.text for one in reader(images)]) for label, reader in readers(sys.argv[1:])]
    write_bytes(OUT, png(sheet(words, readings)))
    for label, texts in readings:
        right = sum(text.lower() == truth.lower() for text, (truth, _) in zip(texts, words))
        print(f"{label}: {right} of {len(words)} words, case ignored")


if __name__ == "__main__":
    main()
