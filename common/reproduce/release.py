"""What every recipe's scale `release` has in common, so that their readers can be compared: data, budget, seeds.

Every reader sees `IMAGES` labelled images of the same rendered corpus once, in fp32, without augmentation (the corpus
is varied enough that nothing is shown twice), under the 94 characters. The last stage of each is trained with every
seed of `SEEDS`. Pre-training sees the first half of the same images, without labels, in addition.
"""

from __future__ import annotations

from typing import Any

from common.errors import UserError

IMAGES = 1_000_000  # seen by every reader; also the size of the corpus
LEAST = 1_280  # fewer images leave no step to warm up or between two validations
SEEDS = (1, 2, 3)
THREADS = 1  # of each process, so that a run leaves the other cores alone
CORPUS = """{strlab} data synth {data} --train {images} --validation 1000 --evaluation 2400 --difficulty medium+hard
  --min-length 1 --max-length 25 --charset 94 --fonts all"""


def budget() -> dict[str, Any]:
    """The fields of every recipe's scale `release`, which no recipe states itself."""
    return {"corpus": CORPUS, "images": IMAGES, "seeds": SEEDS, "threads": THREADS}


def check_images(scale: str, images: int) -> int:
    """`--images` as given. Raises `UserError` for another scale, and for too few."""
    if scale != "release":
        raise UserError(f"--images: only --scale release has a budget of images; {scale} has none")
    if images < LEAST:
        raise UserError(f"--images {images}: at least {LEAST} are needed")
    return images
