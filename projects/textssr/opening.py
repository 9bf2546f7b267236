"""From options to words, models and the check of the font: what `infer.py` and `synthesize.py` open."""

from __future__ import annotations

import sys
from pathlib import Path

from common.infer.recognizer import pick_device
from projects.textssr import shipped
from projects.textssr.conditions import check_vae, read
from projects.textssr.data import JsonRegions, LmdbRegions, RegionMaker, Regions
from projects.textssr.flags import PaintingOptions
from projects.textssr.fonts import Coverage, default_font
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.painting import Generator


def open_regions(options: PaintingOptions) -> Regions:
    """The words of the flag `--data`, prepared with the flags' font. Raises UserError for data that cannot be used."""
    renderer = GlyphRenderer(options.font or default_font(), options.ttf_size, options.max_len)
    glyph = {"clean_glyph": options.clean_glyph, "tight_glyph": options.tight_glyph}
    maker = RegionMaker(options.resolution, renderer, exact_crop=options.exact_crop, **glyph)
    kept = {"language": options.language, "keep_invalid": options.keep_invalid, "published_order": True}
    if options.data.is_dir():
        return LmdbRegions(options.data, maker, options.seed, **kept)
    return JsonRegions([options.data], maker, options.seed, images=options.images, **kept)


def open_generator(options: PaintingOptions) -> Generator:
    """The models of the flags. Raises UserError for a VAE that is not the one of the UNet's training."""
    device = pick_device(options.device)
    conditions = read(options.unet)
    if options.unet == shipped.FOLDER / "unet":
        shipped.announce()
    if options.guidance != 1 and not conditions.get("condition_dropout"):
        told = f"warning: --guidance: {options.unet} was not trained with condition_dropout"
        print(told, file=sys.stderr, flush=True)
    generator = Generator.open(
        options.vae, options.unet, options.scheduler, device, steps=options.steps, precision=options.precision,
        sampler=options.sampler, guidance=options.guidance,
    )  # fmt: skip
    check_vae(conditions, options.unet, options.vae, generator.vae.config.scaling_factor)
    return generator


def check_font(coverage: Coverage, words: str | Path) -> None:
    """Print the characters that the font lacks. Raises UserError where too many of the words need them."""
    warning = coverage.check("--font", words)
    if warning:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
