"""What every recipe's scale `release` has in common, so that their readers can be compared: data, budget, seeds.

Every reader sees the same number of labelled images of the same rendered corpus once, in fp32, without augmentation
(nothing is shown twice), under the 94 characters. The last stage of each is trained with every seed of `SEEDS`.
Pre-training sees the first half of the same images, without labels, in addition.

There are two corpora (`strlab reproduce NAME --scale release --words full|numbers`). `full` has the words that readers
are used for and takes hours for each reader. `numbers` has plain numbers of two digits and takes a minute for each
reader: it shows which methods learn from few images, and what it teaches reads nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.errors import UserError

LEAST = 1_280  # fewer images leave no step to warm up or between two validations
SEEDS = (1, 2, 3)
THREADS = 1  # of each process, so that a run leaves the other cores alone


@dataclass(frozen=True)
class Words:
    """A corpus and how it is learnt.

    Attributes:
        corpus: the command that renders it; {images} is the number of crops to train on.
        images: labelled images that every reader sees, where `--images` does not say otherwise.
        letters: longest word.
        width: of the input in pixels.
        batch, rate: images of a step, and the peak of the learning rate.
        validations: how often the validation words are read in a run.
    """

    corpus: str
    images: int
    letters: int
    width: int
    batch: int
    rate: float
    validations: int


FULL = Words(
    corpus="""{strlab} data synth {data} --train {images} --validation 1000 --evaluation 2400 --difficulty medium+hard
  --min-length 1 --max-length 25 --charset 94 --fonts all""",
    images=1_000_000, letters=25, width=128, batch=32, rate=0.001, validations=10,
)  # fmt: skip
# few images: small batches, for the number of updates decides when reading begins
NUMBERS = Words(
    corpus="""{strlab} data synth {data} --train {images} --validation 100 --evaluation 600 --difficulty plain
  --min-length 2 --max-length 2 --charset 10 --digit-share 0 --punctuation-share 0 --random-share 1
  --fonts Roboto Montserrat "Fira Code" Inconsolata "Roboto Mono" "Zilla Slab\"""",
    images=6_400, letters=2, width=32, batch=8, rate=0.001, validations=1,
)  # fmt: skip
WORDS = {"full": FULL, "numbers": NUMBERS}
PLACEHOLDERS = {
    "seed",
    "images",
    "steps",
    "warmup",
    "interval",
    "letters",
    "letters+1",
    "letters+2",
    "width",
    "batch",
    "rate",
    "rate256",
}


def budget(words: str = "full", images: int | None = None) -> dict[str, Any]:
    """The fields of every recipe's scale `release`, which no recipe states itself. Raises `UserError` for too few."""
    if images is not None and images < LEAST:
        raise UserError(f"--images {images}: at least {LEAST} are needed")
    chosen = WORDS[words]
    return {
        "corpus": chosen.corpus, "words": words, "images": images or chosen.images, "seeds": SEEDS, "threads": THREADS,
    }  # fmt: skip


def values(words: str, images: int) -> dict[str, str]:
    """The placeholders of [release] other than {seed}.

    {steps} of {batch} images; {warmup} and {interval}: steps to the peak {rate}, and from one validation to the next;
    {rate256}: what becomes {rate} for methods that multiply by the batch / 256.
    """
    chosen = WORDS[words]
    steps = images // chosen.batch
    return {
        "images": str(images), "steps": str(steps), "warmup": str(steps // 20), "batch": str(chosen.batch),
        "interval": str(steps // chosen.validations), "letters": str(chosen.letters),
        "letters+1": str(chosen.letters + 1), "letters+2": str(chosen.letters + 2), "width": str(chosen.width),
        "rate": f"{chosen.rate:g}", "rate256": f"{chosen.rate * 256 / chosen.batch:g}",
    }  # fmt: skip


def flags(words: str, images: int) -> str:
    """What was given for `--words` and `--images`, as it is written: "" for the defaults."""
    if not words:
        return ""
    of_words = f" --words {words}" if words != "full" else ""
    return of_words + (f" --images {images}" if images != WORDS[words].images else "")


def folder(words: str, images: int) -> str:
    """What such a run's folder is called after `release`: "", -numbers, -100000, -numbers-20000."""
    return "".join(f"-{word}" for word in flags(words, images).split() if not word.startswith("--"))
