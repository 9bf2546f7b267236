"""Where the data sets that DiG uses keep their words: pairs of picture and label for `common.data.convert.samples`."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.convert.records import each
from common.data.convert.release import numbered_lines, read_text
from common.data.convert.samples import Source
from common.data.convert.scenes import MOST_PIXELS
from common.data.decode import load, open_picture
from common.errors import UserError
from common.files import read_below

IAM_SPLITS = ("trainset", "testset", "validationset1", "validationset2")
OPENTEXT_FOLDERS = ("training_1_set", "training_2_set", "training_5_set", "training_f_set", "validation_set")
NO_LABEL = "###"
UMLAUTS = frozenset("äöü")


class IamWord(NamedTuple):
    """A line of `ascii/words.txt`: name, box (x, y, w, h) on the page, label."""

    name: str
    box: tuple[int, int, int, int]
    label: str

    @property
    def form_line(self) -> str:
        """The first three fields of the name, as the split files list them."""
        return "-".join(self.name.split("-")[:3])

    @property
    def form(self) -> str:
        """The page, first two fields of the name."""
        return "-".join(self.name.split("-")[:2])


def existing(path: Path) -> Path:
    """The path. Raises `UserError` where it is missing."""
    if not path.exists():
        raise UserError(f"{path}: it is missing; give the folder of the unpacked data set")
    return path


def iam_words(root: Path, split: str, use: Callable[[IamWord], Source]) -> Iterator[Source]:
    """`use` of every word of a split that was segmented well (flag `ok`), in the order of the file."""
    lines = set(read_text(existing(root / f"{split}.txt")).split())

    def one(text: str) -> Iterator[Source]:
        fields = text.split(" ", 8)
        if text.startswith("#") or len(fields) < 9 or fields[1] != "ok":
            return
        word = IamWord(fields[0], tuple(int(value) for value in fields[3:7]), fields[8])
        if word.form_line in lines:
            yield use(word)

    yield from each(numbered_lines(existing(root / "ascii" / "words.txt")), one, Source.bad)


def iam(root: Path, split: str) -> Iterator[Source]:
    """IAM's own crops: `words/<f1>/<f1-f2>/<name>.png`."""

    def crop(word: IamWord) -> Source:
        return Source.file(root, f"words/{word.name.split('-')[0]}/{word.form}/{word.name}.png", word.label)

    return iam_words(root, split, crop)


def iam_from_pages(root: Path, split: str) -> Iterator[Source]:
    """Crops cut from the pages `forms/<f1-f2>.png` by the boxes of words.txt, as PNG."""

    def part(word: IamWord) -> Source:
        name = f"forms/{word.form}.png"
        return Source(f"{root / name} {word.name}", word.label, partial(cut, root, name, word.box))

    return iam_words(root, split, part)


def cut(root: Path, name: str, box: tuple[int, int, int, int]) -> bytes:
    """PNG bytes of the box (x, y, w, h) of the page `name` below `root`. Raises OSError, BadImage."""
    left, top, width, height = box
    page, stream = open_picture(read_below(root, name), MOST_PIXELS), io.BytesIO()
    if width < 1 or height < 1 or left >= page.width or top >= page.height:
        raise OSError(f"box {box} lies outside the page")
    load(page, page.mode).crop((left, top, left + width, top + height)).save(stream, "PNG")
    return stream.getvalue()


def cvl(root: Path, split: str) -> Iterator[Source]:
    """CVL: `<split>set/words/<writer>/<a-b-c-d-label>.tif`; words with umlauts are skipped, as published."""
    for path in sorted(existing(root / f"{split}set" / "words").glob("*/*.tif")):
        parts = path.stem.split("-", 4)
        if len(parts) == 5 and not UMLAUTS & set(parts[4]):
            yield Source.file(root, str(path.relative_to(root)), parts[4])


def opentext(root: Path) -> Iterator[Source]:
    """Unlabelled crops of OpenImages v5 text, `.jpg` files of five folders; the label is `###`."""
    existing(root)
    for folder in OPENTEXT_FOLDERS:
        for path in sorted((root / folder).rglob("*.jpg")):
            yield Source.file(root, str(path.relative_to(root)), NO_LABEL)


def reconstructions(root: Path, info: Path) -> Iterator[Source]:
    """Pictures listed in a table path -> label: JSON, or NumPy's `.npy` of a dict of plain texts.

    Paths are relative to `root`. A `.npy` that holds more than texts is refused: it would run code.
    """
    for name, label in table_of(existing(info)).items():
        yield Source.file(root, name, label)


def table_of(path: Path) -> dict[str, str]:
    """The table path -> label of a file. Raises `UserError` for anything else."""
    if path.suffix == ".json":
        try:
            table = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error})") from None
    else:
        table = plain_npy(path)
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise UserError(f"{path}: not a table of paths and labels")
    return {str(key): value for key, value in table.items()}


def plain_npy(path: Path) -> object:
    """The object inside an `.npy` of dtype object, read by an unpickler that knows no class but NumPy's array."""
    allowed = {("numpy", "ndarray"), ("numpy", "dtype")}
    allowed |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if (module, name) not in allowed:
                raise UserError(f"{path}: refused: it holds {module}.{name}; write the table as JSON")
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            reader(file)
            return Plain(file).load().item()
        except (ValueError, EOFError, pickle.UnpicklingError, AttributeError) as error:
            raise UserError(f"{path}: not an .npy of a table ({error})") from None
