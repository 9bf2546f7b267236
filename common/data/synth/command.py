"""`strlab data synth OUT`: render the embedded corpus of word crops.

Everything comes from installed packages: open-licence fonts (fontpkg-*), words (wordfreq), photographs
(scikit-image). OUT gets the usual layout: training/{MJ,ST}, validation,
evaluation/synth-{IIIT5k_3000,SVT,IC13_857,IC15_1811,SVTP,CUTE80}; the last six are stand-ins for the public sets of
those names. No word and no font of evaluation occurs in training. Next to each image are its label, text
mask and character boxes. The same options always give the same samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from common.data.parts import add_shard_argument, find_shard
from common.data.synth.corpus import is_rendered, render_corpus, usable_cores
from common.data.synth.options import CASES, DIFFICULTIES, SynthOptions

_SIZE_HELP = {
    "train": "crops, half in training/MJ, half in training/ST",
    "validation": "crops with training's fonts and words of their own",
    "evaluation": "crops, shared by the six sets in the proportions of the real ones",
    "seed": "of everything that is drawn",
}
_TEXT_HELP = {
    "min_length": "shortest label",
    "max_length": "longest label",
    "digit_share": "share of numbers and codes",
    "punctuation_share": "share of words and numbers with marks",
    "random_share": "share of random characters",
    "vocabulary": "most frequent words used per language",
}


def add_parser(subparsers) -> None:
    """Add `synth` to the commands of `strlab data`."""
    default = SynthOptions()
    parser = subparsers.add_parser(
        "synth",
        help="render the embedded corpus of word crops",
        description=__doc__,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder of the corpus")
    size = parser.add_argument_group("how many and how hard")
    _numbers(size, _SIZE_HELP, default)
    size.add_argument(
        "--difficulty",
        default=default.difficulty,
        metavar="{" + ",".join(DIFFICULTIES) + "}",
        help="plain: dark upright letters on a light ground, as printed; easy: any colours, mild distortion (the cpu "
        "recipes learn from these two); medium: perspective, arcs, textures, shadows; hard: strong distortion, low "
        "contrast, blur, noise, clutter; medium+hard: crops of both in turn (default: %(default)s)",
    )
    size.add_argument(
        "--workers", type=int, help="processes; the samples are the same (default: one per core; 0: none)"
    )
    add_shard_argument(size)
    text = parser.add_argument_group("text")
    _numbers(text, _TEXT_HELP, default)
    text.add_argument(
        "--charset",
        default=default.charset,
        metavar="10|36|62|94[+LETTERS]",
        help="what may be drawn: 10 digits, 36 digits and lower case, 62 with capitals, 94 with punctuation; more "
        "letters after a plus, as in 62+éèàç (default: %(default)s)",
    )
    text.add_argument(
        "--case",
        choices=CASES,
        default=default.case,
        help="ic03: 43 %% capitals, 27 %% lower case, the rest capitalised, as the words of ICDAR 2003; "
        "lower case only where the charset has no capitals (default: %(default)s)",
    )
    text.add_argument(
        "--languages",
        nargs="+",
        default=default.languages,
        metavar="CODE",
        help="word lists to mix: en fr de es ...; letters outside the charset lose their accents (default: en)",
    )
    text.add_argument(
        "--fonts",
        nargs="+",
        default=default.fonts,
        metavar="FONT",
        help="all (every installed fontpkg-* family; more with the extra `fonts`), families, font files or folders "
        "with fonts, two families at least; evaluation keeps some of them for itself (default: all bundled families)",
    )
    text.add_argument("--words", default="", metavar="FILE", help="own words, one a line, with case as written")
    look = parser.add_argument_group("look")
    look.add_argument("--fonts-dir", nargs="+", default=(), metavar="FOLDER", help="own fonts in addition to --fonts")
    look.add_argument("--grounds-dir", default="", metavar="FOLDER", help="own pictures behind the words")
    look.add_argument(
        "--vertical-share", type=float, default=0.0, help="share of words with letters one below the other"
    )
    look.add_argument("--lines-share", type=float, default=0.0, help="share of words broken over two or three lines")
    parser.set_defaults(run=run)


def _numbers(group, helps: dict[str, str], default: SynthOptions) -> None:
    for field, text in helps.items():
        value = getattr(default, field)
        group.add_argument(
            "--" + field.replace("_", "-"), type=type(value), default=value, help=f"{text} (default: %(default)s)"
        )


def run(args: argparse.Namespace) -> None:
    """Render as the parsed arguments say."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(SynthOptions)}
    values |= {name: tuple(values[name]) for name in ("languages", "fonts", "fonts_dir")}
    options = SynthOptions(**values).check()
    if is_rendered(args.out, options):
        print(f"{args.out}: already rendered with these options")
        return
    started, total = time.perf_counter(), options.train + options.validation + options.evaluation
    shard = find_shard(args.shard)
    render_corpus(args.out, options, args.workers, shard=shard)
    seconds = time.perf_counter() - started
    if shard.count > 1:
        print(f"shard {shard}: {seconds:.1f} s")
        return
    cores = max(1, args.workers if args.workers is not None else usable_cores())
    rate = f"{total / seconds:.0f} crops/s, {total / seconds / cores:.0f} on each of {cores} cores"
    print(f"{args.out}: {total} crops in {seconds:.1f} s ({rate}); look at contact_sheet.png")
