"""The flags of `infer.py` and `synthesize.py`, and the frozen options that they become.

What the UNet's folder says of its training (`conditions.json`) is the default of the flags with the same names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.data.parts import add_shard_argument
from common.errors import UserError
from common.flags import DefaultsFormatter, Parser, fill
from common.metrics.protocols import PROTOCOLS
from projects.textssr import shipped
from projects.textssr.conditions import settled
from projects.textssr.fonts import PUBLISHED
from projects.textssr.judge import DEFAULT, READER_HELP
from projects.textssr.model.unet import PLANE_SIZE, PLANES
from projects.textssr.painting import PRECISIONS, SAMPLERS

RULES = ("exact", *(protocol.name for protocol in PROTOCOLS))
"""When a painted word counts as read."""
FONT_HELP = f"font of the glyph conditions (without: {PUBLISHED} in the working folder, or else DejaVu Sans)"


@dataclass(frozen=True)
class PaintingOptions:
    """Models, font and the way of sampling: what both scripts have. The flags of the same names describe the fields."""

    data: Path
    language: str | None
    images: Path | None
    keep_invalid: bool
    limit: int | None
    vae: Path
    unet: Path
    scheduler: Path
    font: Path | None
    device: str
    precision: str
    steps: int
    sampler: str
    guidance: float
    batch_size: int
    resolution: int
    ttf_size: int
    max_len: int
    seed: int
    exact_crop: bool
    clean_glyph: bool
    tight_glyph: bool

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise UserError("--steps, --batch-size, --limit: give 1 or more")
        if self.images is not None and (self.data.is_dir() or not self.images.is_dir()):
            raise UserError(f"--images {self.images}: give an existing folder, and a JSON file as data")
        if self.resolution < 8 or self.resolution % 8:
            raise UserError(f"--resolution: {self.resolution}: give a multiple of 8")
        if (self.max_len, self.ttf_size) != (PLANES, PLANE_SIZE):
            raise UserError(f"--max-len, --ttf-size: the model takes {PLANES} planes of {PLANE_SIZE} pixels")


@dataclass(frozen=True)
class InferOptions(PaintingOptions):
    """The options of `infer.py`."""

    output: Path
    text: str | None
    noise_seed: int
    per_sample_seeds: bool
    wrap: bool
    no_full: bool


@dataclass(frozen=True)
class SynthesisOptions(PaintingOptions):
    """The options of `synthesize.py`."""

    out: Path
    words: Path | None
    per_region: int
    keep_original: bool
    reader: str | None
    reader_model: str | None
    match: str | None
    no_filter: bool
    no_rejected: bool
    workers: int
    threads: int
    part_size: int
    shard: str | None


def parse_infer(argv: Sequence[str] | None, description: str) -> InferOptions:
    """The options of `infer.py`; the published script has no flags, and the defaults are what is fixed in it.

    Raises UserError for numbers that cannot be used, and for a flag that contradicts the UNet's training.
    """
    parser = Parser(description=description, formatter_class=DefaultsFormatter, allow_abbrev=False)
    parser.add_argument(
        "--data", type=Path, default=Path("./benchmark/ic13/test.json"), help="JSON file or LMDB folder"
    )
    parser.add_argument("--output", type=Path, default=Path("./output/ic13"), help="folder of what is painted")
    add_data_flags(parser)
    parser.add_argument("--text", default=None, help="paint this into every region instead of its own text")
    parser.add_argument("--limit", type=int, default=None, help="stop after so many words")
    parser.add_argument("--noise-seed", type=int, default=20, help="of the start noise, the same for every batch")
    parser.add_argument("--per-sample-seeds", action="store_true", help="other noise for each word, batches or not")
    parser.add_argument("--wrap", action="store_true", help="let overflowing values wrap as the published script does")
    parser.add_argument("--no-full", action="store_true", help="write local and region only")
    add_model_flags(parser)
    return parsed(InferOptions, parser, argv)


def parse_synthesis(argv: Sequence[str] | None, description: str) -> SynthesisOptions:
    """The options of `synthesize.py`. Raises UserError as `parse_infer`."""
    parser = Parser(description=description, formatter_class=DefaultsFormatter)
    parser.add_argument("data", type=Path, help="scenes: AnyWord JSON file or LMDB folder")
    parser.add_argument("out", type=Path, help="folder of the data set")
    texts = parser.add_argument_group("texts")
    texts.add_argument("--words", type=Path, default=None, help="words of this list that are about as wide")
    texts.add_argument("--per-region", type=int, default=4, help="words for each region (default: 4)")
    texts.add_argument("--keep-original", action="store_true", help="the region's own word counts as an anagram")
    texts.add_argument("--limit", type=int, default=None, help="use only so many regions")
    add_data_flags(texts)
    keep = parser.add_argument_group("filter")
    keep.add_argument("--reader", default=None, metavar="READER", help=f"{READER_HELP} (default: default)")
    keep.add_argument("--reader-model", default=None, help="its model, where no metadata file is next to it")
    keep.add_argument(
        "--match", choices=RULES, default=None,
        help="when it counts as read: exactly, or by a protocol (default: exact where the reader has the characters, "
        "or else 36)",
    )  # fmt: skip
    keep.add_argument("--no-filter", action="store_true", help="keep everything")
    keep.add_argument("--no-rejected", action="store_true", help="do not store the pictures that are not kept")
    run = parser.add_argument_group("running")
    run.add_argument("--workers", type=int, default=0, help="further processes (default: none)")
    run.add_argument("--threads", type=int, default=1, help="threads of each process on the CPU")
    run.add_argument("--part-size", type=int, default=64, help="attempts between two savings")
    add_shard_argument(run)
    add_model_flags(parser)
    options = parsed(SynthesisOptions, parser, argv)
    if min(options.per_region, options.part_size) < 1 or min(options.workers, options.threads - 1) < 0:
        raise UserError("--per-region, --part-size, --threads: give 1 or more; --workers: 0 or more")
    return options if options.reader or options.no_filter else replace(options, reader=DEFAULT)


def add_data_flags(parser: argparse._ActionsContainer) -> None:
    """The flags that say which words of the scenes are taken."""
    parser.add_argument("--language", default=None, help="only words of this language")
    parser.add_argument("--images", type=Path, default=None, help="folder of the pictures, in place of data_root")
    parser.add_argument(
        "--keep-invalid", action="store_true", help="paint over words marked illegible too, as published"
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that name models, font and the way of sampling."""
    models = parser.add_argument_group(
        "models", "Where none is named and the default folders are not there, the painter that ships is taken."
    )
    models.add_argument(
        "--vae", type=Path, default=Path("./model/vae_ft/checkpoint-150000/vae"), help="folder of the VAE"
    )
    models.add_argument(
        "--unet", type=Path, default=Path("./model/step2/checkpoint-25000/unet"), help="folder of the UNet"
    )
    models.add_argument(
        "--scheduler",
        type=Path,
        default=Path("./model/stable-diffusion-v2-1/scheduler"),
        help="folder of the noise schedule",
    )
    models.add_argument("--font", type=Path, default=None, help=FONT_HELP)
    models.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (the published script: cuda)")
    models.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32", help="of UNet and VAE")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--steps", type=int, default=20, help="denoising steps")
    sampling.add_argument("--sampler", choices=SAMPLERS, default="ddpm", help="dpm-solver: DPM-Solver++, for few steps")
    sampling.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance (1: none)")
    sampling.add_argument("--batch-size", type=int, default=32, help="words that are painted together")
    sampling.add_argument(
        "--resolution", type=int, default=256, help="of the crop, unless the UNet's conditions.json says"
    )
    sampling.add_argument(
        "--ttf-size", type=int, default=PLANE_SIZE, help="side of a character's plane; the model takes this one"
    )
    sampling.add_argument(
        "--max-len", type=int, default=PLANES, help="characters of a word; the model takes this number"
    )
    sampling.add_argument("--seed", type=int, default=42, help="of the crops")
    sampling.add_argument("--exact-crop", action="store_true", help="fix the published off-by-one of the crop's place")
    sampling.add_argument("--clean-glyph", action="store_true", help="whole strokes in the word glyph (tiny models)")
    sampling.add_argument("--tight-glyph", action="store_true", help="its ink fills the region (tiny models)")


def parsed(
    kind: type[InferOptions] | type[SynthesisOptions], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> InferOptions | SynthesisOptions:
    """The options of a command line, completed by what the UNet was trained with where no flag is given.

    Where no model is named and the published folders are not there, the painter that ships is taken.
    """
    values = vars(parser.parse_args(argv))
    for action in parser._actions:  # a second pass without defaults finds the flags that are given
        action.default = argparse.SUPPRESS
    given = set(vars(parser.parse_args(argv)))
    if not given & set(shipped.PARTS) and shipped.ships() and not any(values[name].exists() for name in shipped.PARTS):
        folder = shipped.find("--unet")
        values |= {name: folder / name for name in shipped.PARTS}
    return fill(kind, {**values, **settled(values, given)})
