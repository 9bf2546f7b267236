"""Scenes with word polygons: the AnyWord JSON and LMDB forms, and the samples that training and sampling take."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import torch
from torch.utils.data import Dataset

from common.data.decode import BadImage, decode_rgb
from common.data.lmdb import open_environment
from common.errors import UserError
from projects.textssr.glyphs import GlyphRenderer, glyph_image
from projects.textssr.regions import BadRegion, Box, content_box, crop_image, mask_rectangle, region_mask, square_crop


@dataclass(frozen=True)
class Word:
    """One annotation: where its picture is, the polygon `[[x, y], …]` in the picture's pixels, and the text."""

    picture: str
    polygon: list
    text: str
    language: str | None = None


@dataclass
class Sample:
    """A prepared region; `box` is the crop in the picture.

    `image`, `masked` `[3, R, R]` in [-1, 1]; `mask` `[1, R, R]`, 1 = keep; `planes` `[L, S, S]` and `glyph` `[3, R, R]`
    in [0, 1].
    """

    image: torch.Tensor
    mask: torch.Tensor
    masked: torch.Tensor
    planes: torch.Tensor
    glyph: torch.Tensor
    text: str
    box: Box


def read_words(path: Path, language: str | None = None) -> list[Word]:
    """The usable annotations of an AnyWord JSON file, in file order.

    Kept are those with a polygon and at least one character; with `language`, those that name it or name none.
    Raises UserError for a file that is not of the form.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        root, items = content["data_root"], content["data_list"]
        words = []
        for item in items:
            for entry in item.get("annotations", []):
                wanted = language is None or entry.get("language", language) == language
                if len(entry["polygon"]) > 0 and len(entry["text"]) > 0 and wanted:
                    name = f"{root.rstrip('/')}/{item['img_name']}"
                    words.append(Word(name, entry["polygon"], entry["text"], entry.get("language")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: give a JSON file with data_root and data_list") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an AnyWord JSON file ({type(error).__name__}: {error})") from None
    return words


_open: dict[tuple[int, int, int], lmdb.Environment] = {}
"""By process, device and inode: LMDB refuses to open a file twice in a process."""


def _environment(path: Path) -> lmdb.Environment:
    place = (path / "data.mdb").stat()
    key = (os.getpid(), place.st_dev, place.st_ino)
    if key not in _open:
        for inherited in [old for old in _open if old[0] != key[0]]:
            _open.pop(inherited).close()  # of the parent that forked; only this process's copy is closed
        _open[key] = open_environment(path)
    return _open[key]


class SceneLmdb:
    """One AnyWord LMDB: `image-<id>` bytes and `annotations-<id>` JSON; opened lazily, once per process."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def environment(self) -> lmdb.Environment:
        """The handle of this process; LMDB allows one a file, so all readers of a file share it."""
        try:
            return _environment(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: no readable data.mdb ({error.strerror}): was it moved?") from None

    def index(self) -> list[tuple[str, int]]:
        """(id, number of annotation) of every annotation in key order; pictures without annotations are left out."""
        found = []
        with self.environment.begin() as transaction:
            cursor = transaction.cursor()
            if not cursor.set_range(b"image-"):
                return found
            for key in cursor.iternext(values=False):
                if not key.startswith(b"image-"):
                    break
                identity = key[len(b"image-") :]
                raw = transaction.get(b"annotations-" + identity)
                if raw is not None:
                    found += [(identity.decode(), number) for number in range(len(self._parse(raw, identity)))]
        return found

    def _parse(self, raw: bytes, identity: bytes) -> list[dict]:
        try:
            entries = json.loads(raw)
        except ValueError:
            raise UserError(f"{self.path}: annotations-{identity.decode()}: not JSON; write the LMDB again") from None
        return entries if isinstance(entries, list) else []

    def read(self, identity: str, number: int) -> tuple[bytes, dict]:
        """(picture bytes, annotation)."""
        with self.environment.begin() as transaction:
            picture = transaction.get(f"image-{identity}".encode())
            raw = transaction.get(f"annotations-{identity}".encode())
        return picture, self._parse(raw, identity.encode())[number]


def find_scene_lmdbs(root: str | Path) -> list[Path]:
    """Folders below `root` that hold a data.mdb and no further folders, sorted. Raises UserError for none."""
    root = Path(root)
    found = sorted(
        path.parent for path in root.rglob("data.mdb") if not any(child.is_dir() for child in path.parent.iterdir())
    )
    if not found:
        raise UserError(
            f"{root}: no LMDB (data.mdb) below it: set lmdb_path, or make one with `strlab data convert anyword`"
        )
    return found


class RegionMaker:
    """Turns (picture, polygon, text) into a `Sample`.

    Args:
        renderer: None leaves the conditions out (VAE training needs the crop only).
        exact_crop, clean_glyph: our corrections of the crop's range and of the warped word; off as published.
    """

    def __init__(
        self, resolution: int, renderer: GlyphRenderer | None, *, exact_crop: bool = False, clean_glyph: bool = False
    ) -> None:
        self.resolution, self.renderer = resolution, renderer
        self.exact_crop, self.clean_glyph = exact_crop, clean_glyph

    def crop(self, picture: np.ndarray, polygon: list, rng: random.Random) -> tuple[torch.Tensor, Box]:
        """The crop around the polygon `[3, R, R]` and where it lies. Raises BadRegion."""
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise BadRegion("the polygon is not a list of at least three [x, y]")
        box = square_crop(content_box(picture), points, rng, exact=self.exact_crop)
        return crop_image(picture, box, self.resolution), box

    def make(self, picture: np.ndarray, polygon: list, text: str, rng: random.Random) -> Sample:
        """`picture` `[H, W, 3]` RGB uint8. Raises BadRegion for what cannot be used."""
        if not text:
            raise BadRegion("the text is empty")
        image, box = self.crop(picture, polygon, rng)
        height, width = picture.shape[:2]
        mask = region_mask((width, height), np.asarray(polygon), box, self.resolution)
        return self.condition(image, mask, text, box)

    def condition(self, image: torch.Tensor, mask: torch.Tensor, text: str, box: Box) -> Sample:
        """The sample that asks for `text` in the masked region of a prepared crop."""
        ink = self.renderer.word(text, mask_rectangle(mask), self.resolution, clean=self.clean_glyph)
        planes = torch.from_numpy(self.renderer.planes(text)).float() / 255
        glyph = torch.from_numpy(glyph_image(ink).copy())
        return Sample(image, mask, image * mask, planes, glyph, text, box)


class Regions(Dataset):
    """Samples of a list of words; one that cannot be used is None, counted in `rejected` by reason.

    The crop's place comes from (`seed`, `epoch`, index), or, with `published_order`, from one generator seeded once:
    then reading items in order gives the published crops.
    """

    def __init__(self, maker: RegionMaker, seed: int, *, published_order: bool = False) -> None:
        self.maker, self.seed, self.epoch = maker, seed, 0
        self.rejected: Counter[str] = Counter()
        self.shared = random.Random(seed) if published_order else None

    def picture(self, index: int) -> tuple[np.ndarray, list, str]:
        """(RGB uint8, polygon, text) of an item; a subclass reads it. Raises BadImage."""
        raise NotImplementedError

    def source_name(self, index: int) -> str:
        """The picture of an item, for records."""
        raise NotImplementedError

    def rng(self, index: int) -> random.Random:
        return self.shared or random.Random(f"{self.seed}/{self.epoch}/{index}")

    def __getitem__(self, index: int) -> Sample | torch.Tensor | None:
        try:
            picture, polygon, text = self.picture(index)
            if self.maker.renderer is None:
                return self.maker.crop(picture, polygon, self.rng(index))[0]
            return self.maker.make(picture, polygon, text, self.rng(index))
        except (BadImage, BadRegion) as problem:
            self.rejected[str(problem)] += 1
            return None

    def with_source(self, index: int, text: str | None = None) -> tuple[Sample | None, tuple[np.ndarray, list] | None]:
        """The sample, asking for `text` where one is given, and the (picture, polygon) that it was made from."""
        try:
            picture, polygon, own = self.picture(index)
            return self.maker.make(picture, polygon, text or own, self.rng(index)), (picture, polygon)
        except (BadImage, BadRegion) as problem:
            self.rejected[str(problem)] += 1
            return None, None


class JsonRegions(Regions):
    """The words of one or more AnyWord JSON files."""

    def __init__(
        self, paths: list[Path], maker: RegionMaker, seed: int, *, language: str | None = None, **options
    ) -> None:
        super().__init__(maker, seed, **options)
        self.words = [word for path in paths for word in read_words(path, language)]

    def __len__(self) -> int:
        return len(self.words)

    def texts(self) -> list[str]:
        """Every text, for the check of the font."""
        return [word.text for word in self.words]

    def source_name(self, index: int) -> str:
        return self.words[index].picture

    def picture(self, index: int) -> tuple[np.ndarray, list, str]:
        word = self.words[index]
        try:
            data = Path(word.picture).read_bytes()
        except OSError as error:
            raise BadImage(f"{word.picture}: {error.strerror}") from None
        return decode_rgb(data), word.polygon, word.text


class LmdbRegions(Regions):
    """The words of every scene LMDB below a folder."""

    def __init__(self, root: str | Path, maker: RegionMaker, seed: int, **options) -> None:
        super().__init__(maker, seed, **options)
        self.environments = [SceneLmdb(path) for path in find_scene_lmdbs(root)]
        self.entries = [
            (number, identity, annotation)
            for number, environment in enumerate(self.environments)
            for identity, annotation in environment.index()
        ]
        if not self.entries:
            raise UserError(f"{root}: no picture with annotations-<id> JSON: is it a word LMDB? Scenes are needed")

    def __len__(self) -> int:
        return len(self.entries)

    def source_name(self, index: int) -> str:
        number, identity, _ = self.entries[index]
        return f"{self.environments[number].path}/image-{identity}"

    def text(self, index: int) -> str:
        """The text of an item, empty where its annotation has none."""
        number, identity, annotation = self.entries[index]
        entry = self.environments[number].read(identity, annotation)[1]
        text = entry.get("text") if isinstance(entry, dict) else None
        return text if isinstance(text, str) else ""

    def texts(self) -> list[str]:
        """Every text, for the check of the font."""
        return [self.text(index) for index in range(len(self))]

    def picture(self, index: int) -> tuple[np.ndarray, list, str]:
        number, identity, annotation = self.entries[index]
        data, entry = self.environments[number].read(identity, annotation)
        if not isinstance(entry, dict) or "polygon" not in entry or "text" not in entry:
            raise BadRegion("an annotation lacks polygon or text")
        return decode_rgb(data), entry["polygon"], entry["text"]


def collate(samples: list[Sample | None]) -> dict[str, torch.Tensor] | None:
    """Stack the usable samples under the published batch names; None if there is none."""
    kept = [sample for sample in samples if sample is not None]
    if not kept:
        return None
    names = {
        "pixel_values": "image",
        "masks": "mask",
        "masked_images": "masked",
        "ttf_images": "planes",
        "glyphs": "glyph",
    }
    return {name: torch.stack([getattr(sample, field) for sample in kept]) for name, field in names.items()}


def batches(samples: Iterator[Sample | None], size: int) -> Iterator[list[Sample]]:
    """Usable samples in lists of `size`, in order; the last list may be shorter."""
    batch: list[Sample] = []
    for sample in samples:
        if sample is not None:
            batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
