"""Where the data sets that DiG uses keep their words: pairs of picture and label for `common.data.convert.samples`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.data.convert.samples import Source
from common.data.decode import open_picture
from common.errors import UserError

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


def iam_words(root: Path, split: str) -> Iterator[IamWord]:
    """Words of a split that were segmented well (flag `ok`), in the order of the file."""
    lines = set(existing(root / f"{split}.txt").read_text("utf-8").split())
    for text in existing(root / "ascii" / "words.txt").read_text("utf-8").splitlines():
        fields = text.split(" ", 8)
        if text.startswith("#") or len(fields) < 9 or fields[1] != "ok":
            continue
        word = IamWord(fields[0], tuple(int(value) for value in fields[3:7]), fields[8])
        if word.form_line in lines:
            yield word


def iam(root: Path, split: str) -> Iterator[Source]:
    """IAM's own crops: `words/<f1>/<f1-f2>/<name>.png`."""
    for word in iam_words(root, split):
        path = root / "words" / word.name.split("-")[0] / word.form / f"{word.name}.png"
        yield Source.file(path, word.label)


def iam_from_pages(root: Path, split: str) -> Iterator[Source]:
    """Crops cut from the pages `forms/<f1-f2>.png` by the boxes of words.txt, as PNG."""
    for word in iam_words(root, split):
        page = root / "forms" / f"{word.form}.png"
        yield Source(f"{page} {word.name}", word.label, lambda page=page, box=word.box: cut(page, box))


def cut(page: Path, box: tuple[int, int, int, int]) -> bytes:
    """PNG bytes of the box (x, y, w, h) of a page."""
    left, top, width, height = box
    stream = io.BytesIO()
    open_picture(page).crop((left, top, left + width, top + height)).save(stream, "PNG")
    return stream.getvalue()


def cvl(root: Path, split: str) -> Iterator[Source]:
    """CVL: `<split>set/words/<writer>/<a-b-c-d-label>.tif`; words with umlauts are left out, as published."""
    for path in sorted(existing(root / f"{split}set" / "words").glob("*/*.tif")):
        parts = path.stem.split("-", 4)
        if len(parts) == 5 and not UMLAUTS & set(parts[4]):
            yield Source.file(path, parts[4])


def opentext(root: Path) -> Iterator[Source]:
    """Unlabelled crops of OpenImages v5 text, `.jpg` files of five folders; the label is `###`."""
    existing(root)
    for folder in OPENTEXT_FOLDERS:
        for path in sorted((root / folder).rglob("*.jpg")):
            yield Source.file(path, NO_LABEL)


def reconstructions(root: Path, info: Path) -> Iterator[Source]:
    """Pictures listed in a table path -> label: JSON, or NumPy's `.npy` of a dict of plain texts.

    Paths are relative to `root`. A `.npy` that holds more than texts is refused: it would run code.
    """
    for name, label in table_of(existing(info)).items():
        yield Source.file(root / name, label)


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
    import pickle

    import numpy as np

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
