"""Rendered words without end: sample `i` of a seed is always the same picture, and no picture is drawn twice."""

from __future__ import annotations

import pkgutil
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from common.data.bad import BadSample, BadSamples
from common.data.decode import BadImage, decode_rgb, resize_bicubic
from common.data.synth.fonts import _FAMILIES, Face, find_faces
from common.data.synth.lexicon import TextSource
from common.data.synth.options import SynthOptions, profile_for
from common.data.synth.word import Renderer
from common.data.words import WordDataset, discover
from common.errors import UserError
from common.metrics.protocols import PROTOCOL_36
from common.reader.store import CropStore
from common.text.charset import CHARSET_94
from common.text.coverage import DEFAULT_SHARE, check_coverage
from common.text.normalise import keep_only

# (difficulty, style) and its share: mostly medium, every kind of hardship of the public sets in moderation.
MIXTURE = (
    ("easy", "MJ", 0.10),
    ("medium", "MJ", 0.22),
    ("medium", "ST", 0.20),
    ("medium", "IC13_857", 0.08),
    ("medium", "IC15_1811", 0.12),
    ("hard", "ST", 0.12),
    ("hard", "IC15_1811", 0.08),
    ("hard", "SVTP", 0.04),
    ("hard", "CUTE80", 0.04),
)
# How often a family of a kind is drawn, against a plain one: signs are seldom handwritten or monospaced.
FAMILY_WEIGHT = {"hand": 0.6, "script": 0.6, "display": 0.8, "mono": 0.4}
EASY_FIRST = 12_000  # a CTC reader with random weights leaves its first plateau sooner on easy crops
_CHUNK = 512  # strings are drawn in chunks: drawing one alone costs more than the chunk


class RenderedWords(Dataset):
    """Item `i`: (uint8 `[32, 128, 3]`, label), a function of `seed` and `i` alone.

    Every `repeat`-th item is a new crop, the others show an earlier one with another augmentation (`vary`), which costs
    a tenth of rendering it. Every installed `fontpkg-*` family is used, each as often as another of its kind; nothing
    is held out, because the reader is measured on real words. The first `easy_first` crops are all easy. Raises
    `UserError` where fonts or words are missing.
    """

    def __init__(
        self,
        options: SynthOptions,
        seed: int,
        length: int,
        repeat: int = 3,
        store: Path | None = None,
        size: tuple[int, int] = (32, 128),
        easy_first: int = 0,
    ) -> None:
        self.options, self.seed, self.length, self.repeat, self.size = options.check(), seed, length, repeat, size
        self.easy_first = easy_first
        faces = find_faces(options.fonts or every_family(), options.characters)
        self.faces: tuple[Face, ...] = tuple(replace(face, held_out=False) for face in faces)
        self._folder, self._store = store, None
        self._renderers: list[Renderer] | None = None
        self._texts: TextSource | None = None
        self._chunk: tuple[int, list[str]] = (-1, [])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        rng = np.random.default_rng([self.seed, 2, index])
        new, again = divmod(index, self.repeat)
        pixels, label = self.crop(int(rng.integers(new + 1)) if again else new)
        return vary(pixels, rng), label

    def crop(self, number: int) -> tuple[np.ndarray, str]:
        """Crop `number` as rendered, before `vary`."""
        if self._renderers is None:  # once per worker process
            cv2.setNumThreads(0)
            self._renderers = [self._renderer(level, style) for level, style, _ in MIXTURE]
            self._texts = TextSource(self.options, "train")
            if self._folder is not None:
                self._store = CropStore(self._folder, self.length // self.repeat + 1, self.size)
        found = self._store.get(number) if self._store else None
        if found is not None:
            return found
        rng = np.random.default_rng([self.seed, 1, number])
        shares = np.cumsum([share for *_, share in MIXTURE])
        kind = 0 if number < self.easy_first else int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        word = self._renderers[kind].render(self._label(number), rng)
        pixels = resize_bicubic(_photograph(_turn(_cut(word.image, rng), rng), rng), self.size)
        if self._store:
            self._store.put(number, pixels, word.text)
        return pixels, word.text

    def _renderer(self, difficulty: str, style: str) -> Renderer:
        renderer = Renderer(self.faces, False, profile_for(difficulty, style))
        per_family = Counter(face.family for face in renderer.faces)
        weights = [FAMILY_WEIGHT.get(face.kind, 1.0) / per_family[face.family] for face in renderer.faces]
        renderer.cumulative = np.cumsum(weights) / np.sum(weights)
        return renderer

    def _label(self, index: int) -> str:
        chunk, inside = divmod(index, _CHUNK)
        if self._chunk[0] != chunk:
            self._chunk = chunk, self._texts.draw(_CHUNK, np.random.default_rng([self.seed, 0, chunk]))
        return self._chunk[1][inside]


class RealWords:
    """Words of real sets that are trained on: not the validation tenth, reduced to the 94 characters.

    Every picture is decoded once at the start: those that cannot be are listed in `bad` and never drawn. exclude: a
    list that `strlab doctor --against` wrote, of words that are not drawn either. unsupported_share: largest share of
    the labels that may lose characters to the 94. Raises `UserError` above that share, where no word is left, and for
    more than 1 % of bad pictures.
    """

    def __init__(
        self, folders: Sequence[Path], exclude: Path | None = None, unsupported_share: float = DEFAULT_SHARE
    ) -> None:
        if not folders:
            raise UserError("--real: no folder is given")
        paths = [path for folder in folders for path in discover(folder)]
        self.words = WordDataset(paths, max_length=25, keep=_known, exclude=exclude)
        fix = "not this reader's 94 characters of ASCII: a paper's training takes another"
        for line in check_coverage(self.words.coverage(), unsupported_share, fix):
            print(line)
        advice = "look with `strlab doctor`, which also writes a copy without them"
        self.bad, self.numbers, self.kept_back = BadSamples(len(self.words), fix=advice), [], 0
        for number in tqdm(range(len(self.words)), desc="real words", unit="img", disable=None, leave=False):
            label = self.words.label(number)
            if is_validation(label):
                self.kept_back += 1
                continue
            try:
                self.words.image(number)
            except BadImage as error:
                lmdb, index = self.words.location(number)
                self.bad.add([BadSample(str(lmdb.path), index + 1, str(error))])
                continue
            self.numbers.append(number)
        if not self.numbers:
            raise UserError(f"--real {' '.join(map(str, folders))}: no word to train on")

    def describe(self) -> str:
        """How many words are learnt, and what became of the others, in one line."""
        counts, told = self.words.counts, []
        reasons = {
            "too_long": "longer than 25 characters",
            "empty": "without one of the 94 characters",
            "bad": "no label",
        }
        for name, reason in reasons.items():
            told += [f"{counts[name]} {reason}"] if counts[name] else []
        told += [f"{len(self.bad)} pictures cannot be decoded"] if len(self.bad) else []
        return f"real words: {len(self.numbers)} to learn, {self.kept_back} kept back for validation" + "".join(
            f"; {part}" for part in told
        )

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """A word at random: uint8 `[32, 128, 3]` and its label."""
        sample = self.words[self.numbers[int(rng.integers(len(self.numbers)))]]
        return sample.image, sample.label


class Mixed(Dataset):
    """Rendered words, and with probability `share` a real one, varied alike."""

    def __init__(self, rendered: RenderedWords, real: RealWords | None = None, share: float = 0.0) -> None:
        self.rendered, self.real, self.share = rendered, real, share

    def __len__(self) -> int:
        return len(self.rendered)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        if self.real is not None:
            rng = np.random.default_rng([self.rendered.seed, 3, index])
            if rng.random() < self.share:
                pixels, label = self.real.draw(rng)
                return vary(pixels, rng), label
        return self.rendered[index]


def is_validation(label: str) -> bool:
    """Whether a real word is in the validation tenth: the CRC of its letters and digits in lower case ends in 0."""
    return zlib.crc32("".join(filter(str.isalnum, label.lower())).encode()) % 10 == 0


def validation_words(folders: Sequence[Path]) -> dict[str, tuple[torch.Tensor, list[str]]]:
    """The validation tenth by set: uint8 `[N, 32, 128, 3]` and labels with at least one letter or digit."""
    sets = {}
    for path in (path for folder in folders for path in discover(folder)):
        words = WordDataset([path], max_length=None)
        numbers = [i for i in range(len(words)) if is_validation(words.label(i))]
        numbers = [i for i in numbers if PROTOCOL_36.normalise(words.label(i))]
        if numbers:
            batch = words.__getitems__(numbers)
            sets[path.name] = torch.from_numpy(batch.images), list(batch.labels)
    return sets


def _known(label: str) -> str:
    return keep_only(label, CHARSET_94)


def every_family() -> tuple[str, ...]:
    """Fonts of every installed `fontpkg-*` package, as `SynthOptions.fonts` takes them: names of the bundled families,
    files of the others.
    """
    bundled, fonts = {name for names in _FAMILIES.values() for name in names.replace("*", "").split()}, []
    for module in sorted(m.name for m in pkgutil.iter_modules() if m.name.startswith("fontpkg_")):
        family = module.removeprefix("fontpkg_")
        spec = find_spec(module)
        if family in bundled:
            fonts.append(family)
        elif spec is not None and spec.submodule_search_locations:
            fonts += map(str, sorted(Path(spec.submodule_search_locations[0], "files").glob("*.ttf")))
    return tuple(fonts)


def _cut(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Annotators cut words tightly, and sometimes too tightly: shave up to 6 % of the height off the edges."""
    height, width = image.shape[:2]
    if height < 16 or rng.random() < 0.6:
        return image
    top, bottom, left, right = (int(v) for v in rng.uniform(0, 0.06 * height, 4).round())
    return image[top : height - bottom, left : width - right] if width - left - right > 8 else image


def _turn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fifth of the words climb or fall steeply and are cut by an upright box, as ICDAR 2015's are."""
    if rng.random() < 0.8:
        return image
    height, width = image.shape[:2]
    degrees = float(np.clip(rng.normal(0, 20), -50, 50))
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    # The box holds the turned rectangle, less a part of its corners, which are seldom inked.
    corner = float(rng.uniform(0, 0.6))
    across = round(width * cos + height * abs(sin) * (1 - corner))
    down = round(height * cos + width * abs(sin) - height * cos * corner * min(1.0, abs(sin) * 2))
    matrix = np.float32([[cos, sin, 0], [-sin, cos, 0]])
    matrix[:, 2] = np.float32([across / 2, down / 2]) - matrix[:, :2] @ np.float32([width / 2, height / 2])
    return cv2.warpAffine(image, matrix, (across, down), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two fifths of the words are few pixels of a larger photograph, sharpened by the camera and compressed as JPEG."""
    if rng.random() < 0.6:
        return image
    height, width = image.shape[:2]
    rows = min(height, round(float(np.exp(rng.uniform(np.log(10), np.log(48))))))
    image = cv2.resize(image, (max(8, round(width * rows / height)), rows), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        soft = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 1.2)))
        amount = float(rng.uniform(0.3, 1.8))
        image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    quality = int(rng.integers(20, 91))
    return decode_rgb(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420"))


def collate(items: list[tuple[np.ndarray, str]]) -> tuple[torch.Tensor, list[str]]:
    """uint8 `[B, H, W, 3]` and the labels."""
    return torch.from_numpy(np.stack([image for image, _ in items])), [label for _, label in items]


def vary(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another look of a crop uint8 `[H, W, 3]`: moved, turned, a line of text above or below, other colours and
    contrast, coarser, blurred, noisy. Each kind is drawn alone; a fifth of the crops keeps its geometry and sharpness.
    """
    height, width = image.shape[:2]
    u = rng.random(8)
    if u[0] < 0.7:
        turn, shear, grow_x, grow_y = rng.standard_normal(4).clip(-2, 2) * (0.045, 0.1, 0.05, 0.08)
        move_x, move_y = rng.uniform(-0.03, 0.03) * width, rng.uniform(-0.1, 0.1) * height
        # Turning is in the pixels of the crop, whose width is squeezed: y moves by a fraction of x's turn.
        matrix = np.float32([[1 + grow_x, shear, move_x], [turn, 1 + grow_y, move_y]])
        centre = np.float32([width / 2, height / 2])
        matrix[:, 2] += centre - matrix[:, :2] @ centre
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if u[6] < 0.12:  # the neighbouring line of a sign: the other edge of the crop itself, in its own font and colours
        rows = int(rng.integers(height // 10, height // 4))
        parts = (image[rows:], image[:rows]) if rng.random() < 0.5 else (image[-rows:], image[:-rows])
        image = np.concatenate(parts)
    if u[1] < 0.15:
        image = 255 - image
    if u[2] < 0.3:
        image = np.ascontiguousarray(image[:, :, rng.permutation(3)])
    if u[3] < 0.6:
        gain = float(rng.uniform(0.3, 1.3))  # a weak contrast lies anywhere between black and white
        offset = rng.uniform(-10, 25) + max(0.0, 1 - gain) * rng.uniform(0, 200)
        image = cv2.convertScaleAbs(image, alpha=gain, beta=float(offset))
    if u[7] < 0.2:
        coarse = (int(width * rng.uniform(0.25, 0.6)), int(height * rng.uniform(0.3, 0.6)))
        small = cv2.resize(image, coarse, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    if u[4] < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.8)), sigmaY=float(rng.uniform(0.3, 1.2)))
    if u[5] < 0.15:
        noise = rng.normal(0, float(rng.uniform(2, 12)), image.shape).astype(np.float32)
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    return image
