"""`strlab data synth OUT`: render the embedded corpus of word crops.

Everything comes from installed packages: open-licence fonts (fontpkg-*), words (wordfreq), photographs (scikit-image). OUT gets the
usual layout: training/{MJ,ST}, validation, evaluation/{IIIT5k_3000,SVT,IC13_857,IC15_1811,SVTP,CUTE80}; the last six are
synthetic stand-ins for the public sets of those names. No word and no font of evaluation occurs in training. Beside each
image stand its label, text mask and character boxes. The same options always give the same samples.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common.data.synth.corpus import is_rendered, render_corpus
from common.data.synth.options import CASES, DIFFICULTIES, SynthOptions


def add_parser(subparsers) -> None:
    """Add `synth` to the commands of `strlab data`."""
    parser = subparsers.add_parser(
        "synth",
        help="render the embedded corpus of word crops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = SynthOptions()
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder of the corpus")
    parser.add_argument(
        "--difficulty", choices=DIFFICULTIES, default=default.difficulty,
        help="easy: upright clean words, mild distortion (what the cpu recipes learn from); medium: perspective, arcs, textures, "
        "shadows; hard: strong distortion, low contrast, blur, noise, clutter (default: %(default)s)",
    )  # fmt: skip
    size = parser.add_argument_group("size, in crops")
    for field, text in (
        ("train", "half in training/MJ, half in training/ST"),
        ("validation", "training's fonts, words of its own"),
        ("evaluation", "shared by the six sets in the proportions of the real ones"),
    ):
        size.add_argument(
            f"--{field}", type=int, default=getattr(default, field), help=f"{text} (default: %(default)s)"
        )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--min-length", type=int, default=default.min_length, help="shortest label (default: %(default)s)"
    )
    text.add_argument("--max-length", type=int, default=default.max_length, help="longest label (default: %(default)s)")
    text.add_argument(
        "--charset", default=default.charset, metavar="36|62|94[+LETTERS]",
        help="characters that may be drawn: 36 digits and lower case, 62 with capitals, 94 with punctuation; more letters after a plus, "
        "as in 62+éèàç (default: %(default)s)",
    )  # fmt: skip
    text.add_argument(
        "--case", choices=CASES, default=default.case,
        help="ic03: 43 %% capitals, 27 %% lower case, the rest capitalised, as the words of ICDAR 2003 (default: %(default)s)",
    )  # fmt: skip
    for field, what in (
        ("digit_share", "numbers and codes"),
        ("punctuation_share", "words and numbers with marks"),
        ("random_share", "random characters"),
    ):
        flag = "--" + field.replace("_", "-")
        text.add_argument(
            flag, type=float, default=getattr(default, field), help=f"share of {what} (default: %(default)s)"
        )
    text.add_argument(
        "--languages", nargs="+", default=list(default.languages), metavar="CODE",
        help="word lists to mix, as ISO codes: en fr de es ...; letters outside the charset lose their accents (default: en)",
    )  # fmt: skip
    text.add_argument(
        "--vocabulary",
        type=int,
        default=default.vocabulary,
        help="most frequent words per language (default: %(default)s)",
    )
    parser.add_argument(
        "--fonts", nargs="+", default=[], metavar="FONT",
        help="family names of installed fontpkg-* packages, font files or folders, of two families or more (default: all bundled families)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="of everything that is drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        help="processes; does not change the samples (default: one per core; 0: none)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Render as the parsed arguments say."""
    values = {field: getattr(args, field) for field in SynthOptions().as_dict()}
    values["languages"], values["fonts"] = tuple(values["languages"]), tuple(values["fonts"])
    options = SynthOptions(**values).check()
    if is_rendered(args.out, options):
        print(f"{args.out}: already rendered with these options")
        return
    started, total = time.perf_counter(), options.train + options.validation + options.evaluation
    render_corpus(args.out, options, args.workers)
    seconds = time.perf_counter() - started
    print(
        f"{args.out}: {total} crops in {seconds:.1f} s ({total / seconds:.0f} crops/s); see {args.out / 'contact_sheet.png'}"
    )
