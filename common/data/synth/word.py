"""One rendered word: crop, text mask and character boxes."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
import simplejpeg

from common.data.synth.compose import paint, photograph
from common.data.synth.fonts import Face, face_weights, find_faces
from common.data.synth.geometry import place, random_warp
from common.data.synth.layout import SIZES, GlyphCache, set_block, set_line
from common.data.synth.options import Profile, SynthOptions, profile_for
from common.errors import UserError

LONGEST_COLUMN = 12  # letters of a vertical word


@dataclass(frozen=True)
class RenderedWord:
    """A crop with its truth.

    image: uint8 [h, w, 3] RGB. mask: uint8 [h, w], 1 where a letter is. boxes: one (x1, y1, x2, y2) of integers per
    letter in order, in pixels of the image, x2 and y2 exclusive, never empty. quality: of the JPEG to be stored.
    font, background: names for the record.
    """

    text: str
    image: np.ndarray
    mask: np.ndarray
    boxes: list[tuple[int, int, int, int]]
    quality: int
    font: str
    background: str

    def jpeg(self) -> bytes:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(self.image), self.quality, "RGB", "420")

    def mask_png(self) -> bytes:
        """The mask as stored: PNG, mode L, values 0 and 1."""
        return cv2.imencode(".png", self.mask)[1].tobytes()

    def boxes_json(self) -> bytes:
        """`[[x1, y1, x2, y2, "c"], ...]`."""
        return json.dumps([[*box, c] for box, c in zip(self.boxes, self.text)], separators=(",", ":")).encode()

    def meta_json(self) -> bytes:
        """Font and kind of background."""
        return json.dumps({"font": self.font, "background": self.background}, separators=(",", ":")).encode()


class Renderer:
    """Draws words with the faces of one split. Keeps rasterised glyphs, so make it once per process."""

    def __init__(self, faces: tuple[Face, ...], held_out: bool, profile: Profile):
        self.faces = [f for f in faces if f.held_out == held_out and (profile.italics or "Italic" not in f.path)]
        self.held_out, self.profile = held_out, profile
        self.cumulative = np.cumsum(face_weights(self.faces, profile.script_share))
        self._caches: dict[tuple[int, int], GlyphCache] = {}

    def _face_for(self, text: str, rng: np.random.Generator) -> int:
        for _ in range(40):
            index = min(int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.faces) - 1)
            if self.faces[index].suits(text):
                return index
        for index, face in enumerate(self.faces):
            if face.suits(text):
                return index
        for index, face in enumerate(self.faces):  # capitals where there are only scripts, say
            if set(face.missing).isdisjoint(text):
                return index
        raise UserError(f"--fonts: no font can draw {text!r}: add a font with these characters")

    def _lines(self, text: str, rng: np.random.Generator) -> list[str]:
        """The lines of a word: its letters one below the other, two or three parts, or itself."""
        draw, profile = rng.random(), self.profile
        if draw < profile.vertical_share and 1 < len(text) <= LONGEST_COLUMN:
            return list(text)
        if profile.vertical_share <= draw < profile.vertical_share + profile.lines_share and len(text) >= 4:
            count = 3 if len(text) >= 9 and rng.random() < 0.3 else 2
            ends = [round(len(text) * part / count) for part in range(count + 1)]
            return [text[start:stop] for start, stop in pairwise(ends)]
        return [text]

    def _cache(self, index: int, size: int) -> GlyphCache:
        if (index, size) not in self._caches:
            self._caches[index, size] = GlyphCache(self.faces[index], size)
        return self._caches[index, size]

    def cache_for(self, text: str, rng: np.random.Generator, size: int) -> GlyphCache:
        """Glyphs of `size` pixels per em of a face, drawn at random, that suits `text`."""
        return self._cache(self._face_for(text, rng), size)

    def render(self, text: str, rng: np.random.Generator) -> RenderedWord:
        """Draw `text`. The same generator state gives the same word."""
        profile = self.profile
        index = self._face_for(text, rng)
        low, high = profile.height
        text_height = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        size = next((size for size in SIZES if size * 0.66 >= text_height), SIZES[-1])
        cache = self._cache(index, size)
        spacing = float(rng.standard_normal()) * profile.spacing * size
        # Letters of a script join; others may stand wide apart but should not run into each other.
        spacing = 0.0 if self.faces[index].kind == "script" else max(spacing * 1.5, -0.02 * size)
        lifts = rng.standard_normal(len(text)) * profile.jitter * size if profile.jitter else None
        lines = self._lines(text, rng) if profile.vertical_share or profile.lines_share else [text]
        if len(lines) == 1:
            line, boxes = set_line(text, cache, spacing, lifts)
            warp = random_warp(rng, profile, line.shape[1], line.shape[0], len(text))
            limit = (128, 512)
        else:
            line, boxes = set_block(
                lines, cache, max(spacing, 0.0), centred=len(lines) == len(text) or rng.random() < 0.6
            )
            warp = random_warp(rng, profile, line.shape[1], line.shape[0], 1)  # a block is not bent
            limit = (188, 512)  # of the backgrounds
        padding = rng.uniform(*profile.padding, 4)
        placed, width, height = place(warp, boxes, text_height * len(lines), padding / len(lines), limit)
        alpha = warp.apply(line, width, height)
        image, background = paint(rng, profile, alpha, text_height, self.held_out)
        image = photograph(rng, profile, image, text_height)
        mask = (alpha >= min(112, max(1, int(alpha.max()) // 2))).astype(np.uint8)
        quality = int(rng.integers(*profile.quality, endpoint=True))
        return RenderedWord(
            text, image, mask, _whole(placed, width, height), quality, self.faces[index].name, background
        )


def _whole(boxes: np.ndarray, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Round boxes outwards to pixels inside the crop; each keeps at least one pixel."""
    x1, y1 = np.floor(boxes[:, 0] + 0.25).clip(0, width - 1), np.floor(boxes[:, 1] + 0.25).clip(0, height - 1)
    x2, y2 = np.ceil(boxes[:, 2] - 0.25).clip(x1 + 1, width), np.ceil(boxes[:, 3] - 0.25).clip(y1 + 1, height)
    return [tuple(map(int, box)) for box in np.stack([x1, y1, x2, y2], 1)]


@functools.lru_cache(maxsize=16)
def renderer_for(faces: tuple[Face, ...], held_out: bool, options: SynthOptions, style: str) -> Renderer:
    """A cached `Renderer` of this process."""
    profile = profile_for(options.difficulty.partition("+")[0], style)
    own = {"vertical_share": options.vertical_share, "lines_share": options.lines_share, "grounds": options.grounds_dir}
    return Renderer(faces, held_out, replace(profile, **own))


def render_word(text: str, options: SynthOptions | None = None, seed: int = 0, style: str = "MJ") -> RenderedWord:
    """Render one word in memory, as the corpus would with `options`.

    style: the part whose character it takes: MJ, ST, validation, or a set of evaluation such as CUTE80 (which draws
    with the fonts and pictures of evaluation). Raises `UserError` for characters outside the fonts.
    """
    options = (options or SynthOptions()).check()
    training_styles = ("MJ", "ST", "validation")
    if not text:
        raise UserError("text: empty: give at least one character")
    characters = "".join(dict.fromkeys(options.characters + text))
    faces = find_faces(options.font_sources, characters)
    renderer = renderer_for(faces, style not in training_styles, options, style)
    return renderer.render(text, np.random.default_rng(seed))
