#!/usr/bin/env python
"""Paint words into the regions of scenes. The defaults are the values that are fixed in the published script.

python projects/textssr/infer.py --data ./benchmark/ic13/test.json --output ./output/ic13

OUTPUT gets `local/<n>.png` (the whole crop), `region/<n>.png` (the word's bounding box in it), `full/<n>.png` (the
picture with the word pasted back), `source/<n>.png` (the crop before) and `labels.json` {"<n>.png": text}; without
--text also `truth/<n>.png` and `vae/<n>.png`: the region before, and after the VAE's round trip alone, which bounds
what can be painted, and `languages.json` where the data names them. Numbered pictures of an earlier run are removed.
The published script writes local, region and the labels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
from tqdm.auto import tqdm

from common.errors import UserError, command
from common.files import write_bytes, write_text
from common.infer.recognizer import pick_device
from common.train.session import check_writable
from projects.textssr.conditions import check_vae, settle
from projects.textssr.conditions import read as read_conditions
from projects.textssr.data import JsonRegions, LmdbRegions, RegionMaker, Regions, Sample, reasons
from projects.textssr.fonts import PUBLISHED, Coverage, default_font
from projects.textssr.model.diffusion import to_pixels
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.model.unet import PLANE_SIZE, PLANES
from projects.textssr.painting import PRECISIONS, Generator, batch_draws, paste_back, region_of, sample_draws

FOLDERS = ("local", "region", "full", "source")
OWN_WORD = ("truth", "vae")
"""What the painted region is compared with, where the word painted is the region's own."""
FONT_HELP = f"font of the glyph conditions (without: {PUBLISHED} in the working folder, or else DejaVu Sans)"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that name models, font and the way of sampling; `synthesize.py` takes them too."""
    models = parser.add_argument_group("models")
    models.add_argument("--vae", type=Path, default=Path("./model/vae_ft/checkpoint-150000/vae"))
    models.add_argument("--unet", type=Path, default=Path("./model/step2/checkpoint-25000/unet"))
    models.add_argument("--scheduler", type=Path, default=Path("./model/stable-diffusion-v2-1/scheduler"))
    models.add_argument("--font", type=Path, default=None, help=FONT_HELP)
    models.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (the published script: cuda)")
    models.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--steps", type=int, default=20, help="denoising steps")
    sampling.add_argument("--batch-size", type=int, default=32)
    sampling.add_argument(
        "--resolution", type=int, default=256, help="of the crop, unless the UNet's conditions.json says"
    )
    sampling.add_argument("--ttf-size", type=int, default=64)
    sampling.add_argument("--max-len", type=int, default=25)
    sampling.add_argument("--seed", type=int, default=42, help="of the crops")
    sampling.add_argument("--exact-crop", action="store_true", help="fix the published off-by-one of the crop's place")
    sampling.add_argument("--clean-glyph", action="store_true", help="whole strokes in the word glyph (tiny models)")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; the published script has none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--data", type=Path, default=Path("./benchmark/ic13/test.json"), help="JSON file or LMDB folder"
    )
    parser.add_argument("--output", type=Path, default=Path("./output/ic13"))
    parser.add_argument("--language", default=None, help="only words of this language")
    parser.add_argument("--text", default=None, help="paint this into every region instead of its own text")
    parser.add_argument("--limit", type=int, default=None, help="stop after so many words")
    parser.add_argument("--noise-seed", type=int, default=20, help="of the start noise, the same for every batch")
    parser.add_argument("--per-sample-seeds", action="store_true", help="other noise for each word, batches or not")
    parser.add_argument("--wrap", action="store_true", help="let overflowing values wrap as the published script does")
    parser.add_argument("--no-full", action="store_true", help="write local and region only")
    add_model_flags(parser)
    options = parser.parse_args(argv)
    settle(options, parser, argv)
    return options


def build_maker(options: argparse.Namespace) -> RegionMaker:
    """What turns annotations into conditions, with the flags' font."""
    renderer = GlyphRenderer(options.font or default_font(), options.ttf_size, options.max_len)
    return RegionMaker(
        options.resolution, renderer, exact_crop=options.exact_crop, clean_glyph=options.clean_glyph
    )  # fmt: skip


def open_regions(options: argparse.Namespace) -> Regions:
    """The words of `--data`. Raises UserError for data that cannot be used."""
    maker, kept = build_maker(options), {"language": options.language, "published_order": True}
    if options.data.is_dir():
        return LmdbRegions(options.data, maker, options.seed, **kept)
    return JsonRegions([options.data], maker, options.seed, **kept)


def check_font(coverage: Coverage, options: argparse.Namespace) -> None:
    """Name the characters that the font lacks. Raises UserError where too many words need them."""
    warning = coverage.check("--font", options.text or options.data)
    if warning:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def check_flags(options: argparse.Namespace) -> None:
    """Refuse numbers that cannot be used."""
    if options.steps < 1 or options.batch_size < 1 or (options.limit is not None and options.limit < 1):
        raise UserError("--steps, --batch-size, --limit: give 1 or more")
    if options.resolution < 8 or options.resolution % 8:
        raise UserError(f"--resolution: {options.resolution}: give a multiple of 8")
    if (options.max_len, options.ttf_size) != (PLANES, PLANE_SIZE):
        raise UserError(f"--max-len, --ttf-size: the model takes {PLANES} planes of {PLANE_SIZE} pixels")


def open_generator(options: argparse.Namespace) -> Generator:
    """The models of the flags. Raises UserError for a VAE that is not the one of the UNet's training."""
    device = pick_device(options.device)
    generator = Generator.open(
        options.vae, options.unet, options.scheduler, device, steps=options.steps, precision=options.precision
    )
    check_vae(read_conditions(options.unet), options.unet, options.vae, generator.vae.config.scaling_factor)
    return generator


def save_png(path: Path, picture: np.ndarray) -> None:
    """RGB uint8 `[h, w, 3]` to a file."""
    write_bytes(path, cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes())


class Writer:
    """Numbers the results and writes their pictures; `labels.json` comes last. Those of an earlier run go first."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.labels, self.languages = options, {}, {}
        check_writable(options.output)
        self._clear()
        for name in FOLDERS[:2] if options.no_full else FOLDERS + (() if options.text else OWN_WORD):
            (options.output / name).mkdir(parents=True, exist_ok=True)

    def _clear(self) -> None:
        for name in ("labels.json", "languages.json"):
            (self.options.output / name).unlink(missing_ok=True)
        for folder in [self.options.output / name for name in FOLDERS + OWN_WORD]:
            for path in [path for path in folder.glob("*.png") if path.stem.isdigit()]:
                path.unlink()
            with contextlib.suppress(OSError):  # not there, or it holds something else
                folder.rmdir()

    def add(self, crop: np.ndarray, passed: np.ndarray | None, sample: Sample, source: tuple, language: object) -> None:
        """One result, the crop as it passed the VAE if it did, the (picture, polygon) it came from, its language."""
        name, out = f"{len(self.labels)}.png", self.options.output
        save_png(out / "local" / name, crop)
        save_png(out / "region" / name, region_of(crop, sample.mask))
        if not self.options.no_full:
            before, (picture, polygon) = to_pixels(sample.image).round().byte().permute(1, 2, 0).numpy(), source
            save_png(out / "full" / name, paste_back(picture, crop, sample.box, polygon))
            save_png(out / "source" / name, before)
            if passed is not None:
                save_png(out / "truth" / name, region_of(before, sample.mask))
                save_png(out / "vae" / name, region_of(passed, sample.mask))
        self.labels[name] = sample.text
        if isinstance(language, str) and not self.options.text:
            self.languages[name] = language

    def close(self) -> None:
        """Write the labels in the published form."""
        if self.languages:
            languages = json.dumps(self.languages, indent=4, ensure_ascii=False)
            write_text(self.options.output / "languages.json", languages)
        write_text(self.options.output / "labels.json", json.dumps(self.labels, indent=4, ensure_ascii=False))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, paint, write."""
    options = parse(argv)
    check_flags(options)
    regions = open_regions(options)
    check_font(Coverage(regions.maker.renderer.path, [options.text]) if options.text else regions.coverage, options)
    generator = open_generator(options)
    writer, count = Writer(options), min(len(regions), options.limit or len(regions))
    bar = tqdm(total=count, desc="Words")
    for start in range(0, count, options.batch_size):
        kept = []
        for index in range(start, min(start + options.batch_size, count)):
            sample, source = regions.with_source(index, options.text)
            if sample is not None:
                kept.append((index, sample, source))
        if kept:
            seeds = [options.noise_seed + 1_000_003 * index for index, *_ in kept]
            draw = batch_draws(options.noise_seed, options.seed + start)
            samples = [sample for _, sample, _ in kept]
            crops = generator.paint(
                samples, sample_draws(seeds) if options.per_sample_seeds else draw, clamp=not options.wrap
            )
            passed = [None] * len(kept) if options.text or options.no_full else generator.through_vae(samples)
            for crop, after, (index, sample, source) in zip(crops, passed, kept):
                writer.add(crop, after, sample, source, regions.language(index))
        bar.update(min(options.batch_size, count - start))
    bar.close()
    left_out = reasons(regions.rejected)
    if not writer.labels:
        raise UserError(f"{options.data}: no word could be painted: {left_out or 'it holds none'}")
    writer.close()
    print(f"{options.output}: {len(writer.labels)} words painted" + (f"; left out: {left_out}" if left_out else ""))


if __name__ == "__main__":
    sys.exit(main())
