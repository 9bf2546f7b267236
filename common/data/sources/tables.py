"""Tables with a picture and a text column: parquet files, and Hugging Face `datasets` saved to disk (Arrow files)."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from common.data.lists import LABEL_NAMES
from common.data.sources.base import SAVED, Texts, WordSource
from common.errors import UserError

PICTURE_NAMES = ("image", "img", "picture", "png", "jpg", "jpeg", "webp", "bytes", "crop")
KEPT_GROUPS = 8  # row groups whose pictures stay decoded in a process


class TableSource(WordSource):
    """The rows of a parquet file, of all parquet files of a folder, or of a data set that `datasets` saved to disk.

    The picture column holds encoded bytes or Hugging Face's struct of bytes and path; the text column is named `label`,
    `text` or alike, or is the only one of strings. Arrow files are mapped into memory; of a parquet file a whole row
    group is decoded for one picture, so groups of at most a few hundred rows are quick in shuffled order.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._index: tuple[list[tuple[Path, int]], np.ndarray, Texts, str] | None = None
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._pid: int | None = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_index": self._index, "_groups": OrderedDict(), "_pid": None}

    def __len__(self) -> int:
        return int(self._read()[1][-1])

    def image_bytes(self, index: int) -> bytes:
        """The bytes of the row's picture."""
        groups, starts, _, column = self._read()
        if self._pid != os.getpid():
            self._groups, self._pid = OrderedDict(), os.getpid()
        number = int(np.searchsorted(starts, index, side="right")) - 1
        if number not in self._groups:
            self._groups[number] = _pictures(*groups[number], column)
            if len(self._groups) > KEPT_GROUPS and groups[number][0].suffix == ".parquet":
                self._groups.popitem(last=False)
        self._groups.move_to_end(number)
        value = self._groups[number][index - int(starts[number])].as_py()
        if value is None:
            raise KeyError(f"no picture in row {index + 1} of {self.path}")
        return value

    def label(self, index: int) -> str:
        return self._read()[2][index]

    def close(self) -> None:
        """Forget this process's decoded groups and mapped files."""
        self._groups = OrderedDict()

    def _read(self) -> tuple[list[tuple[Path, int]], np.ndarray, Texts, str]:
        if self._index is None:
            groups, counts, labels, column = [], [], [], ""
            for file in self._files():
                column, text = _columns(file)
                for group, texts in enumerate(_texts(file, text)):
                    groups.append((file, group))
                    counts.append(len(texts))
                    labels += ["" if value is None else str(value) for value in texts]
            if not labels:
                raise UserError(f"{self.path}: no rows in it")
            starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            self._index = groups, starts, Texts(labels), column
        return self._index

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        found = sorted(self.path.glob("*.arrow")) if (self.path / SAVED).is_file() else []
        found = found or sorted(self.path.glob("*.parquet"))
        if not found:
            raise UserError(f"{self.path}: neither parquet files nor a data set saved to disk in it")
        return found


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "parquet and Arrow files need the package pyarrow: pip install 'strlab[tables]', or convert them to an LMDB"
        ) from None
    return pyarrow


def _mapped(file: Path) -> Any:
    """The table of an Arrow file in stream or file form, mapped into memory."""
    arrow = _arrow()
    try:
        source = arrow.memory_map(str(file))
        try:
            return arrow.ipc.open_stream(source).read_all()
        except arrow.ArrowInvalid:
            return arrow.ipc.open_file(source).read_all()
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole Arrow file ({error})") from None


def _parquet(file: Path) -> Any:
    arrow = _arrow()
    try:
        return arrow.parquet.ParquetFile(file)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole parquet file ({error})") from None


def _columns(file: Path) -> tuple[str, str]:
    """Names of the picture and the text column. Raises `UserError` that lists the columns."""
    arrow = _arrow()
    schema = _mapped(file).schema if file.suffix == ".arrow" else _parquet(file).schema_arrow
    types = arrow.types

    def binary(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    pictures = [field.name for field in schema if binary(field.type)]
    texts = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
    picture = next((name for name in PICTURE_NAMES if name in pictures), pictures[0] if len(pictures) == 1 else None)
    text = next((name for name in LABEL_NAMES if name in texts), texts[0] if len(texts) == 1 else None)
    if picture is None or text is None:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(f"{file}: no column of pictures (image) or of texts (label) among: {listed}")
    return picture, text


def _texts(file: Path, column: str) -> list[list[str | None]]:
    """The texts of every row group; an Arrow file is one group for each of its record batches."""
    if file.suffix == ".arrow":
        return [chunk.to_pylist() for chunk in _mapped(file).column(column).chunks]
    parquet = _parquet(file)
    groups = range(parquet.num_row_groups)
    return [parquet.read_row_group(group, columns=[column]).column(0).to_pylist() for group in groups]


def _pictures(file: Path, group: int, column: str) -> Any:
    """The picture bytes of one row group as an Arrow array."""
    if file.suffix == ".arrow":
        array = _mapped(file).column(column).chunk(group)
    else:
        array = _parquet(file).read_row_group(group, columns=[column]).column(0).combine_chunks()
    arrow = _arrow()
    if hasattr(array, "num_chunks"):
        array = array.chunk(0) if array.num_chunks == 1 else arrow.concat_arrays(array.chunks)
    return array.field("bytes") if arrow.types.is_struct(array.type) else array
