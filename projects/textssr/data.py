"""The samples that training and sampling take: regions of scenes, prepared, and what cannot be used listed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from common.data.bad import BadSample
from common.data.decode import BadImage, decode_rgb
from common.errors import UserError
from projects.textssr.fonts import Coverage
from projects.textssr.model.glyphs import GlyphRenderer, glyph_image
from projects.textssr.regions import (
    BadRegion,
    Box,
    content_box,
    crop_image,
    mask_rectangle,
    polygon_points,
    region_mask,
    square_crop,
)  # fmt: skip
from projects.textssr.scenes import SceneIndex, SceneLmdb, find_scene_lmdbs, read_words, text_of


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


class RegionMaker:
    """Turns (picture, polygon, text) into a `Sample`.

    Args:
        renderer: None leaves the conditions out (VAE training needs the crop only).
        exact_crop, clean_glyph, tight_glyph: corrections of the crop's range, of the warped word's strokes and of its
            place (additional, not in the original); off as published.
    """

    def __init__(
        self,
        resolution: int,
        renderer: GlyphRenderer | None,
        *,
        exact_crop: bool = False,
        clean_glyph: bool = False,
        tight_glyph: bool = False,
    ) -> None:
        self.resolution, self.renderer = resolution, renderer
        self.exact_crop, self.clean_glyph, self.tight_glyph = exact_crop, clean_glyph, tight_glyph

    def crop(self, picture: np.ndarray, polygon: Sequence, rng: random.Random) -> tuple[torch.Tensor, Box]:
        """The crop around the polygon `[3, R, R]` and where it lies. Raises BadRegion."""
        box = square_crop(content_box(picture), polygon_points(polygon), rng, exact=self.exact_crop)
        return crop_image(picture, box, self.resolution), box

    def make(self, picture: np.ndarray, polygon: Sequence, text: str, rng: random.Random) -> Sample:
        """`picture` `[H, W, 3]` RGB uint8. Raises BadRegion for what cannot be used."""
        if not isinstance(text, str) or not text:
            raise BadRegion("the text is empty" if text == "" else "the text is not a string")
        if text != text.encode(errors="replace").decode():
            raise BadRegion("the text holds half a character")
        image, box = self.crop(picture, polygon, rng)
        height, width = picture.shape[:2]
        mask = region_mask((width, height), polygon_points(polygon), box, self.resolution)
        try:
            return self.condition(image, mask, text, box)
        except cv2.error:  # wider than OpenCV 4 warps
            raise BadRegion("the text is too long to be drawn") from None

    def condition(self, image: torch.Tensor, mask: torch.Tensor, text: str, box: Box) -> Sample:
        """The sample that asks for `text` in the masked region of a prepared crop."""
        glyph = {"clean": self.clean_glyph, "tight": self.tight_glyph}
        ink = self.renderer.word(text, mask_rectangle(mask), self.resolution, **glyph)
        planes = torch.from_numpy(self.renderer.planes(text)).float() / 255
        word = torch.from_numpy(glyph_image(ink).copy())
        return Sample(image, mask, image * mask, planes, word, text, box)

    def blank(self) -> Sample | torch.Tensor:
        """What stands in, with weight zero, where a whole batch is unusable: the shapes of `make`, or of `crop`."""
        side, renderer = self.resolution, self.renderer
        image = torch.zeros(3, side, side)
        if renderer is None:
            return image
        planes = torch.ones(renderer.max_len, renderer.plane_size, renderer.plane_size)
        return Sample(image, torch.ones(1, side, side), image, planes, torch.ones(3, side, side), "", (0, 0, 1, 1))


class Regions(Dataset):
    """Samples of a list of words; one that cannot be used is None, and `rejected` says why, by its number.

    The crop's place comes from (`seed`, `epoch`, index), or, with `published_order`, from one generator seeded once:
    then reading items in order gives the published crops.
    """

    def __init__(self, maker: RegionMaker, seed: int, *, published_order: bool = False) -> None:
        self.maker, self.seed, self.epoch = maker, seed, 0
        self.rejected: dict[int, str] = {}
        self.coverage = Coverage(maker.renderer.path) if maker.renderer else None
        self.shared = random.Random(seed) if published_order else None

    def annotation(self, index: int) -> object:
        """What was annotated, as it was found: an object with `polygon` and `text`, if it is of use."""
        raise NotImplementedError

    def encoded(self, index: int) -> bytes:
        """The bytes of an item's picture. Raises BadImage."""
        raise NotImplementedError

    def place(self, index: int) -> tuple[str, int]:
        """The picture of an item, and a number from 1 that distinguishes its words, for records."""
        raise NotImplementedError

    def texts(self) -> list[str]:
        """Every text; empty where an annotation has none."""
        raise NotImplementedError

    def language(self, index: int) -> object:
        """What an annotation says of its language, None where nothing."""
        entry = self.annotation(index)
        return entry.get("language") if isinstance(entry, dict) else None

    def source(self, index: int) -> tuple[np.ndarray, Sequence, str]:
        """(RGB uint8, polygon, text) of an item. Raises BadImage or BadRegion."""
        entry = self.annotation(index)
        if not isinstance(entry, dict) or entry.get("polygon") is None or entry.get("text") is None:
            raise BadRegion("an annotation lacks polygon or text")
        return decode_rgb(self.encoded(index)), entry["polygon"], entry["text"]

    def rng(self, index: int) -> random.Random:
        return self.shared or random.Random(f"{self.seed}/{self.epoch}/{index}")

    def __getitem__(self, index: int) -> Sample | torch.Tensor | None:
        try:
            picture, polygon, text = self.source(index)
            if self.maker.renderer is None:
                return self.maker.crop(picture, polygon, self.rng(index))[0]
            return self.maker.make(picture, polygon, text, self.rng(index))
        except (BadImage, BadRegion) as problem:
            self.rejected[index] = str(problem)
            return None

    def with_source(
        self, index: int, text: str | None = None
    ) -> tuple[Sample | None, tuple[np.ndarray, Sequence] | None]:
        """The sample, asking for `text` where one is given, and the (picture, polygon) that it was made from."""
        try:
            picture, polygon, own = self.source(index)
            return self.maker.make(picture, polygon, text or own, self.rng(index)), (picture, polygon)
        except (BadImage, BadRegion) as problem:
            self.rejected[index] = str(problem)
            return None, None

    def blank(self) -> Sample | torch.Tensor:
        """A sample without content in the shapes of the others."""
        return self.maker.blank()

    def bad_samples(self, rejected: Mapping[int, str]) -> list[BadSample]:
        """The register's rows of samples that were skipped."""
        return [BadSample(*self.place(index), reason) for index, reason in rejected.items()]


def reasons(rejected: Mapping[int, str]) -> str:
    """Why samples were skipped and how many for each reason; empty where none was."""
    return "; ".join(f"{reason} ({count})" for reason, count in Counter(rejected.values()).items())


class JsonRegions(Regions):
    """The words of one or more AnyWord JSON files."""

    def __init__(
        self,
        paths: list[Path],
        maker: RegionMaker,
        seed: int,
        *,
        language: str | None = None,
        images: Path | None = None,
        keep_invalid: bool = True,
        **options,
    ) -> None:
        super().__init__(maker, seed, **options)
        how = {"images": images, "keep_invalid": keep_invalid}
        self.words = [word for path in paths for word in read_words(path, language, **how)]
        for text in self.texts() if self.coverage else ():
            self.coverage.see(text)

    def __len__(self) -> int:
        return len(self.words)

    def texts(self) -> list[str]:
        return [text_of(self.annotation(index)) for index in range(len(self))]

    def place(self, index: int) -> tuple[str, int]:
        return self.words[index].picture, index + 1

    def annotation(self, index: int) -> dict:
        word = self.words[index]
        return {"polygon": word.polygon, "text": word.text, "language": word.language}

    def encoded(self, index: int) -> bytes:
        path = self.words[index].picture
        try:
            return Path(path).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise BadImage(f"{path}: {getattr(error, 'strerror', None) or error}") from None


class LmdbRegions(Regions):
    """The words of every scene LMDB below a folder."""

    def __init__(
        self,
        root: str | Path,
        maker: RegionMaker,
        seed: int,
        *,
        language: str | None = None,
        keep_invalid: bool = True,
        **options,
    ) -> None:
        super().__init__(maker, seed, **options)
        self.environments = [SceneLmdb(path) for path in find_scene_lmdbs(root)]
        see = self.coverage.see if self.coverage else None
        self.index = SceneIndex(self.environments, language, see, keep_invalid=keep_invalid)
        if not len(self.index):
            what = "picture with annotations-<id> JSON" + (f" in {language}" if language else "")
            raise UserError(f"{root}: no {what}: is it a word LMDB? Scenes are needed")

    @property
    def entries(self) -> Iterator[tuple[int, str, int]]:
        """(number of the LMDB, id of the picture, number of the annotation) of every item."""
        return ((owner, identity.decode(errors="replace"), number) for owner, identity, number in self.index)

    def __len__(self) -> int:
        return len(self.index)

    def texts(self) -> list[str]:
        found, last, entries = [], None, []
        for owner, identity, number in self.index:
            if (owner, identity) != last:
                entries, last = self.environments[owner].annotations(identity), (owner, identity)
            found.append(text_of(entries[number]))
        return found

    def text(self, index: int) -> str:
        """The text of an item, empty where its annotation has none."""
        return text_of(self.annotation(index))

    def place(self, index: int) -> tuple[str, int]:
        owner, identity, number = self.index[index]
        return f"{self.environments[owner].path}/image-{identity.decode(errors='replace')}", number + 1

    def annotation(self, index: int) -> object:
        owner, identity, number = self.index[index]
        return self.environments[owner].annotations(identity)[number]

    def encoded(self, index: int) -> bytes:
        owner, identity, _ = self.index[index]
        return self.environments[owner].picture(identity)


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


def everyones(rejected: Mapping[int, str]) -> dict[int, str]:
    """What all processes skipped, each sample once. Collective."""
    return {index: reason for part in gather_object([dict(rejected)]) for index, reason in part.items()}
