"""What the data path costs: decode and resize, reading from every kind of word set, conversion, rendering."""

from __future__ import annotations

import importlib.util
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.bench.rows import Row
from common.bench.units import jpeg_crop
from common.data.convert.gt import create_lmdb
from common.data.decode import decode_resized
from common.data.lmdb import LmdbWriter
from common.data.synth.corpus import render_corpus
from common.data.synth.options import SynthOptions
from common.data.words import WordDataset

IMAGES = 100
SIZE = (32, 128)
CROPS = 2000


def rows() -> list[Row]:
    return [
        Row("data: decode + resize to 32x128", decode, "u", IMAGES, target=0.6),
        Row("data: LMDB sample to uint8 32x128", samples, "u", IMAGES, note="key, label, decode, resize"),
        Row("data: folder and list sample to uint8 32x128", listed, "u", IMAGES),
        Row("data: tar shard sample to uint8 32x128", tarred, "u", IMAGES),
        *(tables() if importlib.util.find_spec("pyarrow") else ()),
        Row("data: list converted to an LMDB", converted, "items/s", IMAGES * 10, note="pictures are decoded once"),
        Row("data: rendered crops, 2 processes", crops, "items/s", CROPS, target=1000, threads=2, least=1),
    ]


def tables() -> list[Row]:
    """Rows of the forms that need pyarrow."""
    return [
        Row("data: parquet sample to uint8 32x128", partial(tabled, "parquet"), "u", IMAGES, note="row groups of 100"),
        Row("data: saved `datasets` sample to uint8 32x128", partial(tabled, "arrow"), "u", IMAGES),
    ]


def decode() -> None:
    """One crop after the other, the pixels of PIL's bicubic."""
    for _ in range(IMAGES):
        decode_resized(jpeg_crop(), SIZE)


def samples() -> Callable[[], None]:
    """Samples of a small LMDB as the loader's workers make them."""
    folder = tempfile.TemporaryDirectory()
    with LmdbWriter(Path(folder.name) / "words") as writer:
        for _ in range(IMAGES):
            writer.add(jpeg_crop(), "Reading")
    return _reading(folder)


def listed() -> Callable[[], None]:
    """The same of a folder with a list."""
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name) / "words"
    root.mkdir()
    for number in range(IMAGES):
        (root / f"{number}.jpg").write_bytes(jpeg_crop())
    (root / "labels.txt").write_text("".join(f"{number}.jpg\tReading\n" for number in range(IMAGES)))
    return _reading(folder)


def tarred() -> Callable[[], None]:
    """The same of a WebDataset shard."""
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name) / "words"
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as archive:
        for number in range(IMAGES):
            for kind, data in (("jpg", jpeg_crop()), ("txt", b"Reading")):
                member = tarfile.TarInfo(f"{number:06d}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return _reading(folder)


def tabled(form: str) -> Callable[[], None]:
    """The same of a parquet file, or of an Arrow file as Hugging Face `datasets` saves it."""
    import pyarrow
    import pyarrow.parquet

    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name) / "words"
    root.mkdir()
    cells = [{"bytes": jpeg_crop(), "path": None}] * IMAGES
    table = pyarrow.table({"image": cells, "text": ["Reading"] * IMAGES})
    if form == "parquet":
        pyarrow.parquet.write_table(table, root / "0.parquet", row_group_size=100)
    else:
        with pyarrow.OSFile(str(root / "0.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
        (root / "state.json").write_text("{}")
    return _reading(folder)


def converted() -> Callable[[], None]:
    """A list of words becomes an LMDB, in one process."""
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name)
    (root / "0.jpg").write_bytes(jpeg_crop())
    (root / "gt.txt").write_text("".join(f"0.jpg\tword{number}\n" for number in range(IMAGES * 10)))

    def convert(keep: tempfile.TemporaryDirectory = folder) -> None:
        shutil.rmtree(root / "words", ignore_errors=True)
        create_lmdb(root, root / "gt.txt", root / "words", say=lambda _: None)

    return convert


def _reading(folder: tempfile.TemporaryDirectory) -> Callable[[], None]:
    words = WordDataset([Path(folder.name) / "words"], max_length=25, image_size=SIZE)

    def read(keep: tempfile.TemporaryDirectory = folder) -> None:
        for index in range(IMAGES):
            words[index]

    return read


def crops() -> Callable[[], None]:
    """A corpus of the usual difficulty, from the first process to the last file."""

    def render() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = SynthOptions(train=CROPS - 200, validation=100, evaluation=100)
            render_corpus(Path(folder) / "corpus", options, workers=2, progress=False)

    return render
