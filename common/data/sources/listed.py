"""A folder of pictures with a list of labels, as people have their own data: no conversion is needed."""

from __future__ import annotations

from pathlib import Path

from common.data.lists import find_separator, read_listing, read_text, rows_of
from common.data.sources.base import LIST_NAMES, Texts, WordSource
from common.errors import UserError
from common.files import read_below

PICTURE_FOLDERS = (".", "images", "img", "imgs", "pictures")


class ListSource(WordSource):
    """The words of a list (see `common.data.lists`), in its order; pictures start from its folder or `images/` in it.

    Lines that cannot be used are reported once and are no samples; a picture that is missing is a bad sample.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._words: tuple[Path, Texts, Texts] | None = None

    def __len__(self) -> int:
        return len(self._read()[1])

    def image_bytes(self, index: int) -> bytes:
        """The bytes of the picture's file."""
        root, names, _ = self._read()
        try:
            return read_below(root, names[index])
        except (OSError, ValueError) as error:
            raise KeyError(f"{names[index]}: {getattr(error, 'strerror', None) or error}") from None

    def label(self, index: int) -> str:
        return self._read()[2][index]

    def _read(self) -> tuple[Path, Texts, Texts]:
        if self._words is None:
            file = find_list(self.path) if self.path.is_dir() else self.path
            if file is None or not file.is_file():
                raise UserError(
                    f"{self.path}: no list of words: give a folder with {', '.join(LIST_NAMES[:4])} or a list"
                )
            listing = read_listing(file, None, lambda name: any((base / name).is_file() for base in _bases(file)))
            rows = list(rows_of(listing))
            if not rows:
                raise UserError(f"{file}: no usable line (line {listing.rows[0].number}: {listing.rows[0].wrong})")
            wrong = [row for row in listing.rows if row.wrong]
            if wrong:
                first = f"line {wrong[0].number}: {wrong[0].wrong}"
                print(f"warning: {file}: {len(wrong)} of {len(listing.rows)} lines skipped ({first})", flush=True)
            names = [row.path for row in rows]
            root = max(_bases(file), key=lambda base: sum((base / name).is_file() for name in names[:100]))
            self._words = root, Texts(names), Texts(row.label for row in rows)
        return self._words


def _bases(file: Path) -> list[Path]:
    return [base for name in PICTURE_FOLDERS if (base := file.parent / name).is_dir()]


def find_list(folder: Path) -> Path | None:
    """The list of words in a folder, None where no file of a known name lists pictures that are there."""
    for name in LIST_NAMES:
        if (folder / name).is_file() and lists_pictures(folder / name):
            return folder / name
    return None


def lists_pictures(file: Path) -> bool:
    """Whether one of the first lines of a file names a picture that is there."""
    try:
        text, _ = read_text(file)
    except UserError:
        return False
    lines = [line.rstrip("\r") for line in text.split("\n", 30)[:30] if line.strip()]
    hits = []

    def exists(name: str) -> bool:
        found = (
            any((base / name).is_file() for base in _bases(file)) if len(name) < 1000 and "\0" not in name else False
        )
        hits.append(found)
        return found

    try:
        if not lines:
            return False
        if lines[0].lstrip().startswith("{"):
            listing = read_listing(file, None, exists)
            return any(exists(row.path) for row in listing.rows[:30])
        find_separator(file, lines, exists)
    except (UserError, OSError):
        return False
    return any(hits)
