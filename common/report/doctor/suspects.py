"""Likely label errors: where a trained reader is sure of another text than the label."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from common.data.decode import BadImage, decode_rgb
from common.data.sources import open_words
from common.errors import UserError
from common.files import write_bytes, write_text
from common.infer.pictures import png
from common.infer.recognizer import Recognizer
from common.metrics.protocols import PROTOCOL_36

DROP = "-"  # in the column new_label: exclude the word
SHEET = (5, 200)  # columns of the contact sheet, and how many words are on it
CELL = (250, 92)


class Suspect(NamedTuple):
    """A word whose label is likely wrong; `new_label` is for the user to fill in."""

    score: float
    path: str
    number: int
    label: str
    prediction: str
    confidence: float
    new_label: str = ""


def find_suspects(recognizer: Recognizer, folders: Sequence[Path], most: int) -> list[Suspect]:
    """The `most` words that the reader disagrees with most: confidence x (1 + distance of the texts) / 2, highest
    first.

    Texts are compared by letters and digits without case. Words whose label has none of these are not judged.
    """
    suspects: list[Suspect] = []
    for folder in folders:
        words, labels = open_words(folder), []

        def images(words=words, labels=labels) -> Iterator[bytes]:
            for index, value in words.items("label"):
                image = words.value("image", index)
                if image is not None:
                    labels.append((index, value.decode("utf-8", "replace")))
                    yield image

        bar = tqdm(total=len(words), desc=folder.name, unit="img", disable=None, leave=False)
        for number, prediction in enumerate(recognizer.stream(images())):
            bar.update()
            index, label = labels[number]
            truth, read = PROTOCOL_36.normalise(label), PROTOCOL_36.normalise(prediction.text)
            if prediction.error or not truth or truth == read:
                continue
            far = Levenshtein.normalized_distance(truth, read)
            score = float(prediction.confidence) * (1 + far) / 2
            confidence = round(float(prediction.confidence), 4)
            suspects.append(Suspect(round(score, 5), str(folder), index + 1, label, prediction.text, confidence))
        bar.close()
        suspects = sorted(suspects, reverse=True)[:most]
    return suspects


def write_suspects(file: Path, suspects: Sequence[Suspect]) -> Path:
    """Write the CSV file to edit, and a contact sheet next to it; returns the sheet's path."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Suspect._fields)
    writer.writerows(suspects)
    write_text(file, text.getvalue())
    return write_bytes(file.with_suffix(".png"), png(contact_sheet(suspects[: SHEET[1]])))


def contact_sheet(suspects: Sequence[Suspect]) -> np.ndarray:
    """uint8 [h, w, 3]: each word with its place in the list, its label and what was read."""
    columns, (width, height) = SHEET[0], CELL
    rows = max(1, -(-len(suspects) // columns))
    sheet = Image.new("RGB", (columns * width, rows * height), (250, 250, 248))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, suspect in enumerate(suspects):
        left, top = place % columns * width, place // columns * height
        try:
            picture = Image.fromarray(decode_rgb(open_words(suspect.path).image_bytes(suspect.number - 1)))
        except (BadImage, KeyError):
            continue
        scale = min((width - 12) / picture.width, 48 / picture.height)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        sheet.paste(picture, (left + 4, top + 4))
        draw.text((left + 4, top + 54), f"{place + 1}. label {suspect.label[:26]}", fill=(150, 30, 30), font=font)
        told = f"read {suspect.prediction[:26]}  {suspect.confidence:.2f}"
        draw.text((left + 4, top + 71), told, fill=(30, 90, 30), font=font)
    return np.asarray(sheet)


def read_corrections(file: Path) -> tuple[dict[Path, dict[int, str]], dict[Path, dict[int, str]]]:
    """(corrected labels, words to exclude) of an edited list: real path of a set -> number -> label, or reason.

    Rows whose `new_label` is empty change nothing; `-` excludes the word. Raises `UserError` for another file.
    """
    labels: dict[Path, dict[int, str]] = defaultdict(dict)
    excluded: dict[Path, dict[int, str]] = defaultdict(dict)
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                place, number, new = Path(row["path"]).resolve(), int(row["number"]), (row["new_label"] or "").strip()
                if new == DROP:
                    excluded[place][number] = "excluded by hand"
                elif new:
                    labels[place][number] = new
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): give the list that --with wrote") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: no list of path, number and new_label ({error}): give the one that --with wrote"
        ) from None
    return labels, excluded
