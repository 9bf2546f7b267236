"""What augmentation costs per image, in u. A call works on many images, so that every operation has its share in the
mean.

SSM's collation, which stands in its project, is timed there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from common.augment import frost, recipes, views
from common.bench.rows import Row
from common.bench.units import jpeg_crop
from common.data.decode import decode_rgb, resize_bicubic

IMAGES = 1000
_SIZE = (32, 128)


def _items(augment: Callable[..., np.ndarray], after: bool) -> Callable[[], None]:
    """Decode, augment and resize to uint8 32x128 (ABINet-style items, and views that resize themselves)."""
    data = jpeg_crop()

    def run() -> None:
        rng = np.random.default_rng(0)
        for _ in range(IMAGES):
            image = augment(decode_rgb(data), rng)
            if after:
                resize_bicubic(image, _SIZE)

    return run


def _abinet(mask: bool) -> Callable[[], None]:
    """Items of many runs, because a run draws its kind of geometry and its strengths once."""
    runs = [recipes.abinet(seed) for seed in range(40)]
    data = jpeg_crop()
    text = np.zeros(decode_rgb(data).shape[:2], np.uint8)

    def run() -> None:
        rng = np.random.default_rng(0)
        for index in range(IMAGES):
            augment = runs[index % len(runs)]
            image = augment(decode_rgb(data), rng, text)[0] if mask else augment(decode_rgb(data), rng)
            resize_bicubic(image, _SIZE)

    return run


def _rand_augment(**options) -> Callable[[], None]:
    """The recipe alone, on a decoded 32x128 image."""
    augment = recipes.rand_augment(**options)
    image = resize_bicubic(decode_rgb(jpeg_crop()), _SIZE)
    for index in range(frost.COUNT):  # grown once per process
        frost.texture(index)

    def run() -> None:
        rng = np.random.default_rng(0)
        for _ in range(IMAGES):
            augment(image, rng)

    return run


def rows() -> list[Row]:
    """Rows of the augmentation; published figures are those of the originals on the same kind of core."""
    items = {"images_per_call": IMAGES}
    return [
        Row("augment: ABINet-style item, decode to 32x128", lambda: _abinet(False), published=4.5, target=1.7, **items),
        Row("augment: ABINet-style item with mask", lambda: _abinet(True), **items),
        Row("augment: RandAugment, default", lambda: _rand_augment(), published=17, target=3, **items),
        Row("augment: RandAugment, every image", lambda: _rand_augment(intact_prob=0), published=34, target=6, **items),
        Row("augment: RandAugment --fast_aug, default", lambda: _rand_augment(fast=True), target=1, **items),
        Row(
            "augment: RandAugment --fast_aug, every image",
            lambda: _rand_augment(fast=True, intact_prob=0),
            target=2,
            **items,
        ),
        Row(
            "augment: DiG contrastive view, decode to 32x128",
            lambda: _items(views.ContrastiveView(), False),
            target=3,
            **items,
        ),
    ]
