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

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from tqdm.auto import tqdm

from common.errors import UserError, command
from common.files import write_text
from common.train.session import check_writable
from projects.textssr.data import Sample, reasons
from projects.textssr.flags import parse_infer
from projects.textssr.fonts import Coverage
from projects.textssr.model.diffusion import to_pixels
from projects.textssr.opening import check_font, open_generator, open_regions
from projects.textssr.painting import batch_draws, paste_back, region_of, sample_draws, save_png

FOLDERS = ("local", "region", "full", "source")
OWN_WORD = ("truth", "vae")
"""What the painted region is compared with, where the word painted is the region's own."""


class Writer:
    """Numbers the results and writes their pictures; `labels.json` comes last. Those of an earlier run go first."""

    def __init__(self, out: Path, *, full: bool, own_words: bool) -> None:
        self.out, self.full, self.own_words = out, full, own_words
        self.labels: dict[str, str] = {}
        self.languages: dict[str, str] = {}
        check_writable(out)
        for name in ("labels.json", "languages.json"):
            (out / name).unlink(missing_ok=True)
        for folder in [out / name for name in FOLDERS + OWN_WORD]:
            for path in [path for path in folder.glob("*.png") if path.stem.isdigit()]:
                path.unlink()
            with contextlib.suppress(OSError):  # not there, or it holds something else
                folder.rmdir()
        for name in (FOLDERS + (OWN_WORD if own_words else ())) if full else FOLDERS[:2]:
            (out / name).mkdir(parents=True, exist_ok=True)

    def add(self, crop: np.ndarray, passed: np.ndarray | None, sample: Sample, source: tuple, language: object) -> None:
        """One result, the crop as it passed the VAE if it did, the (picture, polygon) it came from, its language."""
        name, out = f"{len(self.labels)}.png", self.out
        save_png(out / "local" / name, crop)
        save_png(out / "region" / name, region_of(crop, sample.mask))
        if self.full:
            before, (picture, polygon) = to_pixels(sample.image).round().byte().permute(1, 2, 0).numpy(), source
            save_png(out / "full" / name, paste_back(picture, crop, sample.box, polygon))
            save_png(out / "source" / name, before)
            if passed is not None:
                save_png(out / "truth" / name, region_of(before, sample.mask))
                save_png(out / "vae" / name, region_of(passed, sample.mask))
        self.labels[name] = sample.text
        if isinstance(language, str) and self.own_words:
            self.languages[name] = language

    def close(self) -> None:
        """Write the labels in the published form."""
        if self.languages:
            languages = json.dumps(self.languages, indent=4, ensure_ascii=False)
            write_text(self.out / "languages.json", languages)
        write_text(self.out / "labels.json", json.dumps(self.labels, indent=4, ensure_ascii=False))


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse_infer(argv, __doc__)
    regions = open_regions(options)
    own_words = not options.text
    coverage = regions.coverage if own_words else Coverage(regions.maker.renderer.path, [options.text])
    check_font(coverage, options.text or options.data)
    generator = open_generator(options)
    writer = Writer(options.output, full=not options.no_full, own_words=own_words)
    count = min(len(regions), options.limit or len(regions))
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
            passed = [None] * len(kept) if options.no_full or not own_words else generator.through_vae(samples)
            for crop, after, (index, sample, source) in zip(crops, passed, kept):
                writer.add(crop, after, sample, source, regions.language(index))
        bar.update(min(options.batch_size, count - start))
    bar.close()
    left_out = reasons(regions.rejected)
    if not writer.labels:
        raise UserError(f"{options.data}: no word could be painted: {left_out or 'it holds none'}")
    writer.close()
    print(f"{options.output}: {len(writer.labels)} words painted" + (f"; skipped: {left_out}" if left_out else ""))


if __name__ == "__main__":
    sys.exit(main())
