"""Paint a word into a picture: the region of --box is repainted with --text, everything else stays as it is.

    strlab paint photo.jpg --box 40,60,210,120 --text OPEN

The painter that ships works on crops of 64 pixels. WEIGHTS names another one: a folder with `unet` (and its
conditions.json), `vae` and `scheduler`, as `train_diff.py` writes it into `final`. Written are OUT, the picture with
the word, and next to it OUT's name with `.both`, the picture before and after side by side. With --tries N the word
is painted N times from other noise, and the one that READER reads best is taken.

From Python: `projects.textssr.paint.paint(image, box, text)`, or `Painter.open` for several words.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from common.errors import UserError
from common.infer.images import ImageLike, as_array
from common.infer.recognizer import Prediction, pick_device
from common.metrics.protocols import PROTOCOL_36
from projects.textssr import conditions as trained_with
from projects.textssr import shipped
from projects.textssr.data import RegionMaker, Sample
from projects.textssr.fonts import default_font, known_characters
from projects.textssr.judge import DEFAULT, READER_HELP, Read, check_reader, open_reader
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.painting import SAMPLERS, Generator, blend_back, paste_back, region_of, sample_draws, save_png
from projects.textssr.regions import BadRegion

Place = Sequence[float] | Sequence[Sequence[float]]
"""(left, top, right, bottom), or a polygon [[x, y], …] clockwise from the beginning of the word; pixels."""
PARTS = ("unet", "vae", "scheduler")
GAP = 8
TRIES = 8
"""How often the painter that ships tries, where nothing else is asked for."""


@dataclass(frozen=True)
class Painted:
    """One painted word. All are RGB uint8: `picture` `[H, W, 3]` with the word in it, `crop` and `before` `[R, R, 3]`
    the square around the region as painted and as it was, `region` the bounding box of the word in `crop`. `seed` is
    that of the noise, `reading` what the reader that chose it reads (None: nothing was read)."""

    picture: np.ndarray
    crop: np.ndarray
    before: np.ndarray
    region: np.ndarray
    seed: int
    reading: Prediction | None = None


class Painter:
    """A trained model that paints words into pictures; opened once, called many times. Not for several threads.

    Args:
        generator: VAE, UNet and scheduler.
        maker: what draws the conditions as in the training.
    """

    def __init__(self, generator: Generator, maker: RegionMaker) -> None:
        self.generator, self.maker = generator, maker

    @classmethod
    def open(
        cls,
        weights: str | Path | None = None,
        *,
        vae: str | Path | None = None,
        scheduler: str | Path | None = None,
        font: str | Path | None = None,
        resolution: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        device: str = "auto",
    ) -> Painter:
        """From a folder with `unet`, `vae` and `scheduler`; `vae` and `scheduler` may be given instead.

        Without `weights` the painter that ships is taken, and reported once on stderr. `weights` may also be a UNet
        folder itself. `resolution` is for UNets without conditions.json, as the published ones are (256): the published
        conditions are taken then. Steps, sampler and guidance are those of conditions.json where they are not given,
        without any 20, ddpm and 1. Raises UserError for what is missing or does not fit.
        """
        if weights is None:
            weights = shipped.find("--weights")
            shipped.announce()
        folder = Path(weights).expanduser()
        if not folder.is_dir():
            raise UserError(f"--weights {folder}: no such folder: give one with unet, vae and scheduler")
        if steps is not None and steps < 1:
            raise UserError(f"--steps {steps}: give 1 or more")
        unet = folder / "unet" if (folder / "unet").is_dir() else folder
        given = {"vae": vae, "scheduler": scheduler}
        places = {name: Path(path or folder / name) for name, path in given.items()}
        for name, path in places.items():
            if not path.is_dir():
                raise UserError(f"--weights {folder}: no {name} in it: give --{name} FOLDER")
        known = trained_with.read(unet)
        if not known and resolution is None:
            raise UserError(
                f"--weights {unet}: no {trained_with.NAME}, so the resolution of its training is not known: give "
                "--resolution (the published UNets: 256)"
            )
        if known and resolution not in (None, known["resolution"]):
            raise UserError(f"--resolution {resolution}: {unet} was trained with {known['resolution']}")
        trained_with.check_font(known, unet, Path(font) if font else None)
        asked = {"steps": steps, "sampler": sampler, "guidance": guidance}
        how = trained_with.sampling(known) | {name: value for name, value in asked.items() if value is not None}
        opened = Generator.open(places["vae"], unet, places["scheduler"], pick_device(device), **how)
        trained_with.check_vae(known, unet, places["vae"], opened.vae.config.scaling_factor)
        switches = {name: bool(known.get(name, False)) for name in ("exact_crop", "clean_glyph", "tight_glyph")}
        renderer = GlyphRenderer(font or default_font())
        return cls(opened, RegionMaker(known.get("resolution", resolution), renderer, **switches))

    def __call__(
        self,
        image: ImageLike,
        box: Place,
        text: str,
        *,
        seed: int = 20,
        tries: int = 1,
        read: Read | None = None,
        blend: bool = True,
    ) -> Painted:
        """Paint `text` into the region `box` of `image`; the same seed gives the same picture.

        `tries` pictures are painted from the seeds `seed`, `seed` + 1, …; the one that `read` reads best is returned.
        `blend`: fit the ground's colours to those around the region; without, the crop is pasted as painted.
        Raises UserError for a box outside the picture and for a text that cannot be drawn.
        """
        if tries < 1 or (tries > 1 and read is None):
            raise UserError(f"--tries {tries}: give 1 or more, and a reader that chooses one")
        picture = as_array(image, upright=True)
        polygon = corners(box, picture.shape[1], picture.shape[0])
        self.check_text(text)
        try:
            sample = self.maker.make(picture, polygon, text, random.Random(seed))
        except BadRegion as error:
            raise UserError(f"--box {shown(box)}: {error}") from None
        crops = self._tries(sample, range(seed, seed + tries))
        regions = [region_of(crop, sample.mask) for crop in crops]
        readings = read(regions) if read is not None else [None]
        chosen = max(range(tries), key=lambda number: legibility(readings[number], text)) if read is not None else 0
        before = ((sample.image / 2 + 0.5) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        pasted = (blend_back if blend else paste_back)(picture, crops[chosen], sample.box, polygon)
        return Painted(pasted, crops[chosen], before, regions[chosen], seed + chosen, readings[chosen])

    def _tries(self, sample: Sample, seeds: Sequence[int]) -> list[np.ndarray]:
        """Crops of one sample from several seeds, painted in batches of TRIES."""
        parts = [seeds[start : start + TRIES] for start in range(0, len(seeds), TRIES)]
        return [crop for part in parts for crop in self.generator.paint([sample] * len(part), sample_draws(part))]

    def check_text(self, text: str) -> None:
        """Raise UserError for a text that the model's conditions cannot say."""
        renderer = self.maker.renderer
        if not text.strip():
            raise UserError("--text: it is empty: give the word to paint")
        if len(text) > renderer.max_len:
            raise UserError(f"--text: {len(text)} characters: the model paints at most {renderer.max_len}")
        missing = sorted({character for character in text if ord(character) not in known_characters(renderer.path)})
        if missing:
            raise UserError(
                f"--text {text}: {renderer.path.name} has no glyph for {' '.join(missing)}: give another font"
            )


def legibility(reading: Prediction, text: str) -> tuple[float, float]:
    """How well a reading fits the wanted text, for comparisons: similarity without case and signs, then confidence."""
    wanted, found = (PROTOCOL_36.normalise(word) for word in (text, reading.text))
    return Levenshtein.normalized_similarity(wanted, found), reading.confidence


def paint(
    image: ImageLike,
    box: Place,
    text: str,
    *,
    weights: str | Path | None = None,
    seed: int = 20,
    steps: int | None = None,
    tries: int | None = None,
    device: str = "auto",
) -> np.ndarray:
    """Paint one word into a picture; the models stay open between calls with the same weights.

    Args:
        image: a file or bytes (turned as EXIF says), a PIL image, or RGB uint8 `[H, W, 3]`.
        box: (left, top, right, bottom) or a polygon [[x, y], …], in pixels of the picture.
        text: the word, at most 25 characters.
        weights: a folder with `unet`, `vae` and `scheduler`; None: the painter that ships.
        seed: of the noise; another one paints the word in another way.
        steps: denoising steps; None: as the painter's conditions.json says, or 20.
        tries: paint so many times and return what the default reader reads best; None: 8 with the painter that ships,
            1 with another one.
        device: auto, cpu, cuda, cuda:1.

    Returns:
        RGB uint8 `[H, W, 3]`: the picture with the word; outside the region it is unchanged.

    Raises:
        UserError: a box outside the picture, a character without a glyph, weights that are missing or do not fit.
    """
    tries = tries or (TRIES if weights is None else 1)
    read = _reader(DEFAULT, device) if tries > 1 else None
    painter = _opened(None if weights is None else str(weights), steps, device)
    return painter(image, box, text, seed=seed, tries=tries, read=read).picture


@functools.lru_cache(2)
def _opened(weights: str | None, steps: int | None, device: str) -> Painter:
    return Painter.open(weights, steps=steps, device=device)


@functools.lru_cache(1)
def _reader(name: str, device: str) -> Read:
    return open_reader(name, None, device)


def corners(box: Place, width: int, height: int) -> list[list[int]]:
    """The polygon of a box or polygon in a picture of that size. Raises UserError for one that leaves the picture."""
    values = np.asarray(box, dtype=np.float64)
    if values.shape == (4,):
        left, top, right, bottom = values
        values = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if values.ndim != 2 or values.shape[1] != 2 or len(values) < 3 or not np.isfinite(values).all():
        raise UserError("--box: give x1,y1,x2,y2 (left, top, right, bottom) or three or more corners")
    if values.min() < 0 or values[:, 0].max() > width or values[:, 1].max() > height:
        raise UserError(f"--box {shown(box)}: it leaves the picture of {width} x {height} pixels")
    points = np.minimum(values.astype(int), (width - 1, height - 1))
    if (np.ptp(points, axis=0) < 2).any() or (values.size == 8 and (box_turned(values))):
        raise UserError(f"--box {shown(box)}: right must be more than left and bottom more than top, by 2 pixels")
    return points.tolist()


def box_turned(values: np.ndarray) -> bool:
    """Whether the corners `[4, 2]` of a word do not run clockwise."""
    (x1, y1), (x2, y2), (x3, y3) = values[0], values[1], values[2]
    return bool((x2 - x1) * (y3 - y1) - (y2 - y1) * (x3 - x1) <= 0)


def shown(box: Place) -> str:
    """A box as it was typed."""
    return ",".join(f"{value:g}" for value in np.asarray(box, dtype=np.float64).ravel())


def side_by_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Two pictures of one size with a white gap: `[H, 2 W + GAP, 3]`."""
    return np.concatenate([before, np.full((len(before), GAP, 3), 255, np.uint8), after], axis=1)


def parse_box(text: str) -> list[float]:
    """`x1,y1,x2,y2` or `x1,y1,…,x4,y4`. Raises argparse's error for anything else."""
    try:
        values = [float(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        values = []
    if len(values) not in (4, 8):
        raise argparse.ArgumentTypeError(f"{text!r}: give four numbers x1,y1,x2,y2, or eight for four corners")
    return values


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "paint", help="paint a word into a picture", description=__doc__,
    )  # fmt: skip
    parser.add_argument("image", type=Path, metavar="PICTURE", help="the picture")
    parser.add_argument(
        "--box", type=parse_box, required=True, metavar="X1,Y1,X2,Y2",
        help="left, top, right, bottom of the region in pixels, or x and y of four corners clockwise",
    )  # fmt: skip
    parser.add_argument("--text", required=True, help="the word to paint there")
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="unet, vae and scheduler (without: the painter that ships)"
    )
    parser.add_argument("--vae", type=Path, metavar="FOLDER", help="another VAE than that of WEIGHTS")
    parser.add_argument("--scheduler", type=Path, metavar="FOLDER", help="another scheduler than that of WEIGHTS")
    parser.add_argument("--out", type=Path, default=Path("painted.png"), metavar="FILE.png", help="(painted.png)")
    parser.add_argument("--font", type=Path, help="the font of the UNet's training, where it is not the default")
    parser.add_argument("--resolution", type=int, help="of UNets without conditions.json (published: 256)")
    parser.add_argument("--steps", type=int, help="denoising steps (those of its conditions.json, or else 20)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="way of denoising (that of its conditions.json, or ddpm)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (that of its conditions.json, or 1)")
    parser.add_argument("--seed", type=int, default=20, help="of the noise (20)")
    parser.add_argument(
        "--tries", type=int, metavar="N",
        help="paint N times and take what READER reads best (8 with the painter that ships, 1 with WEIGHTS)",
    )  # fmt: skip
    parser.add_argument(
        "--reader", metavar="READER", help=f"read the result, and choose among tries, with: {READER_HELP}"
    )
    parser.add_argument(
        "--no-blend", action="store_true",
        help="paste the region as it was painted, as infer.py does: do not fit its colours to those around it",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.reader is not None:
        check_reader(args.reader)
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: give a name that ends in .png")
    if args.image.resolve() in (args.out.resolve(), args.out.with_suffix(".both.png").resolve()):
        raise UserError(f"--out {args.out}: {args.image} is the picture to paint into; give another name")
    image = open_picture(args.image)
    tries = args.tries if args.tries is not None else TRIES if args.weights is None else 1
    reader = args.reader or (DEFAULT if tries > 1 else None)
    painter = Painter.open(
        args.weights, vae=args.vae, scheduler=args.scheduler, font=args.font, resolution=args.resolution,
        steps=args.steps, sampler=args.sampler, guidance=args.guidance, device=args.device,
    )  # fmt: skip
    read = open_reader(reader, None, args.device) if reader else None
    box = args.box if len(args.box) == 4 else np.reshape(args.box, (4, 2)).tolist()
    painted = painter(image, box, args.text, seed=args.seed, tries=tries, read=read, blend=not args.no_blend)
    both = args.out.with_suffix(".both.png")
    save_png(args.out, painted.picture)
    save_png(both, side_by_side(image, painted.picture))
    print(f"{args.out}: {args.text} painted; before and after: {both}")
    if painted.reading is not None:
        of = f" of {tries} tries the one with --seed {painted.seed}:" if tries > 1 else ""
        told = f"{reader} reads {painted.reading.text!r} (confidence {painted.reading.confidence:.2f})"
        print(f"{of.strip()} {told}".strip())


def open_picture(path: Path) -> np.ndarray:
    """RGB uint8 `[H, W, 3]` of a file. Raises UserError for none."""
    try:
        return as_array(path, upright=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from None
