"""`strlab data scenes OUT`: scenes with several words, for models that paint words into pictures.

Photographs, textures and plain grounds carry two to five words of different fonts, sizes and colours, none overlapping.
OUT gets three parts, `train`, `more` (as train, other pictures) and `test` (words, fonts and photographs of its own),
each in both AnyWord forms: `lmdb/` with `image-%09d` (JPEG) and `annotations-%09d` (JSON [{polygon, text, language}]),
and `images/` with `test.json` (data_root, data_list). Polygons are four whole points in pixels, clockwise from the
beginning of the word. The same options always give the same scenes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from tqdm import tqdm

from common.data.lmdb import LmdbWriter
from common.data.synth.backgrounds import LUMA, planes, random_backdrop, random_colour
from common.data.synth.compose import blend, photograph
from common.data.synth.fonts import find_faces
from common.data.synth.geometry import place, random_warp
from common.data.synth.layout import SIZES, set_line
from common.data.synth.lexicon import text_source
from common.data.synth.options import DIFFICULTIES, SynthOptions
from common.data.synth.word import Renderer, renderer_for
from common.errors import UserError
from common.files import read_json, write_text

PARTS = ("train", "more", "test")
LARGEST = (192, 832)
TRIES = 12


@dataclass(frozen=True)
class SceneOptions:
    """Everything that decides a scene folder. `height` and `width` are those of the pictures, in pixels."""

    train: int = 400
    more: int = 200
    test: int = 60
    height: int = 160
    width: int = 240
    difficulty: str = "easy"
    charset: str = "62"
    min_length: int = 2
    max_length: int = 8
    seed: int = 1
    fonts: tuple[str, ...] = ()

    def check(self) -> SceneOptions:
        """Return self, or raise `UserError` that names the first bad field."""
        for name, largest in (("height", LARGEST[0]), ("width", LARGEST[1])):
            if not 64 <= getattr(self, name) <= largest:
                raise UserError(f"--{name}: {getattr(self, name)}: give 64 to {largest} pixels")
        if min(self.train, self.more, self.test) < 0 or not self.train + self.more + self.test:
            raise UserError("--train, --more, --test: give 0 or more scenes each, and at least one")
        self.words().check()
        return self

    def words(self) -> SynthOptions:
        """How words are drawn: as in the corpus of crops, without punctuation."""
        return SynthOptions(
            difficulty=self.difficulty, train=1, charset=self.charset, min_length=self.min_length, seed=self.seed,
            max_length=self.max_length, punctuation_share=0.0, random_share=0.05, fonts=self.fonts,
        )  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture uint8 [h, w, 3] RGB and its words: (polygon [4, 2] whole pixels, text)."""

    image: np.ndarray
    words: list[tuple[np.ndarray, str]]

    def annotations(self) -> list[dict]:
        """The words in AnyWord's form."""
        return [
            {"polygon": polygon.tolist(), "text": text, "language": "Latin", "valid": True, "pos": number}
            for number, (polygon, text) in enumerate(self.words, 1)
        ]


class ScenePainter:
    """Paints scenes of one part; keeps rasterised glyphs, so make it once per process."""

    def __init__(self, options: SceneOptions, part: str) -> None:
        self.options, self.part = options, part
        self.held_out = part == "test"
        words = options.words()
        renderer = renderer_for(find_faces(words.font_sources, words.characters), self.held_out, words, "ST")
        # words bent into arcs have no four corners
        profile = dataclasses.replace(renderer.profile, arc_share=0.0, wave_share=0.0, photo_share=0.45)
        self.renderer = Renderer(tuple(renderer.faces), self.held_out, profile)
        self.texts = text_source(words, "evaluation" if self.held_out else "train")

    def paint(self, number: int) -> Scene:
        """Scene `number` of the part; the same number gives the same scene."""
        options, profile = self.options, self.renderer.profile
        rng = np.random.default_rng([options.seed, PARTS.index(self.part), number])
        height, width = options.height, options.width
        ground = random_backdrop(rng, profile, height, width, self.held_out, float(rng.uniform(30, 225)))
        canvas, taken, words = ground.pixels, np.zeros((height, width), bool), []
        for text in self.texts.draw(int(rng.integers(2, 6)), rng):
            polygon = self._add(rng, canvas, taken, text)
            if polygon is not None:
                words.append((polygon, text))
        return Scene(photograph(rng, profile, canvas, 24.0), words)

    def _add(self, rng: np.random.Generator, canvas: np.ndarray, taken: np.ndarray, text: str) -> np.ndarray | None:
        """Paint a word into a free place of the canvas [3, h, w]; its polygon, or None where nothing is free."""
        _, height, width = canvas.shape
        tall = float(np.exp(rng.uniform(np.log(20), np.log(min(64, height / 3)))))
        alpha, corners = self._word(rng, text, min(tall, 1.5 * width / (len(text) + 1)))
        high, wide = alpha.shape
        if high >= height or wide >= width:
            return None
        for _ in range(TRIES):
            top, left = int(rng.integers(0, height - high)), int(rng.integers(0, width - wide))
            spot = (slice(top, top + high), slice(left, left + wide))
            if not taken[spot].any():
                break
        else:
            return None
        taken[spot] = True
        below = canvas[(slice(None), *spot)]
        luma = float(below.reshape(3, -1).mean(1) @ LUMA)
        apart = rng.uniform(*self.renderer.profile.contrast) * (1 if luma < 127 else -1)
        colour = planes(random_colour(rng, float(np.clip(luma + apart, 5, 250))))
        canvas[(slice(None), *spot)] = blend(below, alpha, colour)
        return np.round(corners + (left, top)).astype(int).clip(0, (width - 1, height - 1))

    def _word(self, rng: np.random.Generator, text: str, tall: float) -> tuple[np.ndarray, np.ndarray]:
        """Coverage uint8 [h, w] of a word `tall` pixels high, and the four corners [4, 2] of its line in it."""
        size = next((size for size in SIZES if size * 0.66 >= tall), SIZES[-1])
        line, boxes = set_line(text, self.renderer.cache_for(text, rng, size))
        warp = random_warp(rng, self.renderer.profile, line.shape[1], line.shape[0], len(text))
        _, width, height = place(warp, boxes, tall, np.full(4, 0.12))
        x1, y1, x2, y2 = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
        corners = warp.forward(np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]))
        return warp.apply(line, width, height), corners


def render_scenes(out: str | Path, options: SceneOptions, progress: bool = True) -> Path:
    """Write all parts below `out`; finished parts stay. Raises `UserError` for other options or foreign files."""
    out, card = Path(out), {"scenes": 1, **dataclasses.asdict(options.check()), "fonts": list(options.fonts)}
    note = out / "scenes.json"
    if out.exists() and any(out.iterdir()):
        if not note.is_file() or read_json(note) != card:
            raise UserError(f"{out}: it holds something else, or scenes of other options: give a new folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(card, indent=1))
    for part in PARTS:
        count = getattr(options, part)
        if count and not (out / part / "test.json").is_file():
            _render_part(out / part, ScenePainter(options, part), count, progress)
    return out


def _render_part(folder: Path, painter: ScenePainter, count: int, progress: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    listed = []
    with LmdbWriter(folder / "lmdb") as writer:
        for number in tqdm(range(count), desc=folder.name, unit=" scenes", disable=not progress, mininterval=1):
            scene = painter.paint(number)
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(scene.image), 92, "RGB", "420")
            annotations = scene.annotations()
            writer.add(data, None, annotations=json.dumps(annotations).encode())
            name = f"{number:06d}.jpg"
            (pictures / name).write_bytes(data)
            listed.append({"img_name": name, "annotations": annotations})
    content = {"data_root": pictures.name, "data_list": listed}
    write_text(folder / "test.json", json.dumps(content, ensure_ascii=False, indent=1))


def add_parser(subparsers) -> None:
    """Add `scenes` to the commands of `strlab data`."""
    parser = subparsers.add_parser(
        "scenes", help="render scenes with word polygons (AnyWord form)", description=__doc__,
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder")
    texts = {"train": "scenes", "more": "scenes", "test": "scenes", "height": "pixels", "width": "pixels",
             "min_length": "letters", "max_length": "letters", "seed": "of everything that is drawn"}  # fmt: skip
    for name, unit in texts.items():
        default = getattr(SceneOptions, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{unit} (default: %(default)s)"
        )
    parser.add_argument(
        "--difficulty",
        choices=DIFFICULTIES,
        default=SceneOptions.difficulty,
        help="as of `strlab data synth` (default: %(default)s)",
    )
    parser.add_argument("--charset", default=SceneOptions.charset, help="as of `strlab data synth` (default: 62)")
    parser.add_argument("--fonts", nargs="+", default=(), metavar="FONT", help="as of `strlab data synth`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Render as the parsed arguments say."""
    names = [field.name for field in dataclasses.fields(SceneOptions)]
    options = SceneOptions(**{name: getattr(args, name) for name in names} | {"fonts": tuple(args.fonts)})
    render_scenes(args.out, options)
    print(f"{args.out}: {options.train} + {options.more} + {options.test} scenes (train, more, test)")
