"""What a rendered corpus is made of: its size, its text, and how hard its crops are to read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from common.data.sources import STAND_IN
from common.errors import UserError
from common.text.charset import CHARSET_36, CHARSET_62, CHARSET_94, UPPER

DIFFICULTIES = ("plain", "easy", "medium", "hard")
CASES = ("ic03", "lower", "upper", "title")
NAMED_CHARSETS = {"10": "0123456789", "36": CHARSET_36, "62": CHARSET_62, "94": CHARSET_94}
# The number of words of the real sets: the synthetic stand-ins share `evaluation` in the same proportions.
EVALUATION_SHARES = {
    "IIIT5k_3000": 3000,
    "SVT": 647,
    "IC13_857": 857,
    "IC15_1811": 1811,
    "SVTP": 645,
    "CUTE80": 288,
}


BUNDLED = "bundled"  # in place of a font: every bundled family
LATER = ("fonts_dir", "grounds_dir", "words", "vertical_share", "lines_share")  # options that came later


@dataclass(frozen=True)
class SynthOptions:
    """Everything that decides the bytes of a corpus. Two corpora with equal options hold equal samples."""

    difficulty: str = "medium"  # or several joined by "+", which the crops take in turn
    train: int = 40000
    validation: int = 1000
    evaluation: int = 2400
    min_length: int = 2
    max_length: int = 16
    charset: str = "94"
    case: str = "ic03"
    digit_share: float = 0.06
    punctuation_share: float = 0.05
    random_share: float = 0.05
    languages: tuple[str, ...] = ("en",)
    vocabulary: int = 60000
    fonts: tuple[str, ...] = ()
    seed: int = 1
    fonts_dir: tuple[str, ...] = ()
    grounds_dir: str = ""
    words: str = ""
    vertical_share: float = 0.0
    lines_share: float = 0.0

    @property
    def font_sources(self) -> tuple[str, ...]:
        """What `find_faces` takes: the named families, or the bundled ones, and own folders."""
        return self.fonts + self.fonts_dir if self.fonts or not self.fonts_dir else (BUNDLED, *self.fonts_dir)

    @property
    def characters(self) -> str:
        """The characters that a label may hold, in no particular order."""
        name, _, extra = self.charset.partition("+")
        return "".join(dict.fromkeys(NAMED_CHARSETS[name] + extra))

    def check(self) -> SynthOptions:
        """Return self, or raise `UserError` that names the first bad field."""
        for field in ("train", "validation", "evaluation"):
            if getattr(self, field) < 0:
                raise UserError(f"--{field}: {getattr(self, field)} is negative: give 0 or more crops")
        if self.train + self.validation + self.evaluation == 0:
            raise UserError("--train, --validation, --evaluation: all are 0: ask for at least one crop")
        if not 1 <= self.min_length <= self.max_length <= 25:
            raise UserError(
                f"--min-length {self.min_length}, --max-length {self.max_length}: need 1 <= min <= max <= 25"
            )
        if not set(self.difficulty.split("+")) <= set(DIFFICULTIES):
            known = f"{', '.join(DIFFICULTIES)}, nor several of them joined by +"
            raise UserError(f"--difficulty: {self.difficulty!r} is not one of {known}")
        if self.case not in CASES:
            raise UserError(f"--case: {self.case!r} is not one of {', '.join(CASES)}")
        if self.charset.partition("+")[0] not in NAMED_CHARSETS:
            raise UserError(f"--charset: {self.charset!r}: give 10, 36, 62 or 94, or with more letters 94+éèü")
        if self.case in ("upper", "title") and not set(UPPER) <= set(self.characters):
            raise UserError(f"--case {self.case}: charset {self.charset} has no capitals: use --charset 62 or 94")
        shares = (self.digit_share, self.punctuation_share, self.random_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError("--digit-share, --punctuation-share, --random-share: each from 0, together at most 1")
        if min(self.vertical_share, self.lines_share) < 0 or self.vertical_share + self.lines_share > 1:
            raise UserError("--vertical-share, --lines-share: each from 0, together at most 1")
        for field, what in (("grounds_dir", "folder of pictures"), ("words", "text file with one word a line")):
            path = getattr(self, field)
            if path and not (Path(path).is_dir() if field == "grounds_dir" else Path(path).is_file()):
                raise UserError(f"--{field.replace('_', '-')}: {path} is no {what}")
        return self

    def as_dict(self) -> dict:
        """Plain JSON types, for `corpus.json`; later options appear only where they are used, so that older corpora
        stay the same."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {key: value for key, value in values.items() if key not in LATER or value}


@dataclass(frozen=True)
class Part:
    """One LMDB of the corpus: folder under the root, number of crops, word/font split, rendering profile name."""

    folder: str
    size: int
    split: str
    style: str


def corpus_parts(options: SynthOptions) -> list[Part]:
    """The LMDBs of a corpus; empty ones are skipped. MJ and ST share `train` equally."""
    parts = [
        Part("training/MJ", (options.train + 1) // 2, "train", "MJ"),
        Part("training/ST", options.train // 2, "train", "ST"),
        Part("validation", options.validation, "validation", "validation"),
    ]
    left, shares_left = options.evaluation, sum(EVALUATION_SHARES.values())
    for name, share in EVALUATION_SHARES.items():
        size = round(left * share / shares_left)
        left, shares_left = left - size, shares_left - share
        parts.append(Part(f"evaluation/{STAND_IN}{name}", size, "evaluation", name))
    return [part for part in parts if part.size]


@dataclass(frozen=True)
class Profile:
    """Amplitudes and probabilities of one kind of crop. Angles in degrees, lengths as shares of the text height."""

    height: tuple[float, float] = (18, 50)  # of the text line, in pixels
    padding: tuple[float, float] = (0.05, 0.3)  # around the text, each side drawn apart
    rotate: float = 2.0  # standard deviation
    shear: float = 0.05
    stretch: float = 0.1  # log of the horizontal stretch, standard deviation
    perspective: float = 0.06
    arc_share: float = 0.1
    arc: float = 40.0  # largest angle between the first and the last letter
    wave_share: float = 0.0
    spacing: float = 0.05
    jitter: float = 0.0  # of each letter's baseline
    contrast: tuple[float, float] = (70, 200)  # of luma, text against background, of 255
    dark_share: float = 0.55  # dark letters on a lighter ground
    photo_share: float = 0.3
    texture_share: float = 0.25
    background_contrast: tuple[float, float] = (0.2, 0.6)
    shadow_share: float = 0.2
    outline_share: float = 0.12
    fill_share: float = 0.15  # texture or gradient inside the letters
    light: float = 0.2  # amplitude of the lighting gradient
    blur: tuple[float, float] = (0.0, 0.8)  # sigma in pixels
    motion_share: float = 0.05
    lowres_share: float = 0.1
    noise: tuple[float, float] = (0, 6)  # sigma, of 255
    clutter_share: float = 0.1  # lines and frames near the word
    quality: tuple[int, int] = (55, 95)
    script_share: float = 0.5  # weight of script faces against sans faces
    italics: bool = True
    vertical_share: float = 0.0  # words whose letters stand one below the other
    lines_share: float = 0.0  # words broken over two or three lines
    grounds: str = ""  # folder of own pictures in place of the bundled photographs


_DIFFICULTY = {
    "plain": Profile(
        height=(24, 40), padding=(0.08, 0.16), rotate=0.5, shear=0.0, stretch=0.05, perspective=0.01, arc_share=0.0,
        arc=0, spacing=0.02, contrast=(120, 230), dark_share=1.0, photo_share=0.0, texture_share=0.1,
        background_contrast=(0.05, 0.15), shadow_share=0.0, outline_share=0.0, fill_share=0.0, light=0.05,
        blur=(0.0, 0.4), motion_share=0.0, lowres_share=0.0, noise=(0, 3), clutter_share=0.0, quality=(85, 95),
        script_share=0.0, italics=False,
    ),
    "easy": Profile(
        height=(20, 44), padding=(0.08, 0.22), rotate=1.2, shear=0.02, stretch=0.08, perspective=0.03, arc_share=0.03,
        arc=18, spacing=0.03, contrast=(95, 220), photo_share=0.2, texture_share=0.2, background_contrast=(0.1, 0.35),
        shadow_share=0.1, outline_share=0.06, fill_share=0.08, light=0.12, blur=(0.0, 0.6), motion_share=0.0,
        lowres_share=0.0, noise=(0, 4), clutter_share=0.0, quality=(75, 95), script_share=0.12,
    ),
    "medium": Profile(),
    "hard": Profile(
        height=(14, 50), padding=(-0.02, 0.4), rotate=5.0, shear=0.12, stretch=0.18, perspective=0.13, arc_share=0.25,
        arc=80, wave_share=0.08, spacing=0.1, jitter=0.025, contrast=(55, 200), photo_share=0.45, texture_share=0.3,
        background_contrast=(0.3, 0.8), shadow_share=0.35, outline_share=0.2, fill_share=0.3, light=0.4,
        blur=(0.0, 1.4), motion_share=0.12, lowres_share=0.25, noise=(0, 12), clutter_share=0.25, quality=(30, 90),
        script_share=0.9,
    ),
}  # fmt: skip

# What sets each part apart: a pair is a new range, a number multiplies an amplitude or adds to a share.
_SCALE = {
    "MJ": {"photo_share": 0.5, "padding": 0.8},
    "ST": {"photo_share": 1.6, "perspective": 1.3, "rotate": 1.3},
    "validation": {},
    "IIIT5k_3000": {},
    "SVT": {"photo_share": 1.5, "blur": 1.3, "script_share": 0.5},
    "IC13_857": {"rotate": 0.5, "perspective": 0.5, "arc_share": 0.0, "blur": 0.6, "noise": 0.6},
    "IC15_1811": {"height": 0.75, "blur": 1.7, "noise": 1.6, "rotate": 1.5},
    "SVTP": {"perspective": 2.6, "rotate": 2.0, "shear": 1.5},
    "CUTE80": {"arc": 1.5, "script_share": 0.5},
}
_SHARE_ADDED = {"IC15_1811": {"lowres_share": 0.25, "motion_share": 0.1}, "CUTE80": {"arc_share": 1.0}}


def profile_for(difficulty: str, style: str) -> Profile:
    """The profile of a part (`Part.style`) at a difficulty."""
    base = _DIFFICULTY[difficulty]
    changes: dict = {}
    for field, factor in _SCALE[style].items():
        value = getattr(base, field)
        changes[field] = tuple(v * factor for v in value) if isinstance(value, tuple) else value * factor
    for field, share in _SHARE_ADDED.get(style, {}).items():
        changes[field] = min(1.0, getattr(base, field) + share)
    return dataclasses.replace(base, **changes)
