"""Images of pre-training: resized crops, twice where they are augmented, and the superimposed views of a batch."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from common.augment.recipes import SSM_GROUPS, SSM_WEATHER, from_flags
from common.data.decode import resize_bicubic
from common.data.loader import Batch
from common.data.words import Augment, WordDataset, discover, sample_rng
from projects.ssm.pretrain.collate import HORIZONTAL, VERTICAL, Views, draw_directions, superimpose


class TwiceAugmented(WordDataset):
    """Two independent augmentations of every resized image, one above the other: uint8 `[2 * H, W, 3]`."""

    def __init__(self, paths: list[Path], augment: Augment, image_size: tuple[int, int], **rules: object) -> None:
        super().__init__(paths, image_size=(2 * image_size[0], image_size[1]), **rules)
        self.view_size, self.twice = image_size, augment

    def _pixels(self, index: int, epoch: int, seed: int) -> tuple[np.ndarray, None]:
        rng = sample_rng(seed, epoch, index)
        image = resize_bicubic(self.image(index), self.view_size)
        views = [resize_bicubic(np.ascontiguousarray(self.twice(image, rng)), self.view_size) for _ in range(2)]
        return np.concatenate(views), None


def build_dataset(options: argparse.Namespace) -> WordDataset:
    """All LMDBs below `--data_path`; labels only decide which images are too long."""
    paths = discover(options.data_path)
    size = tuple(options.input_size)
    rules = {"max_length": options.max_length, "drop_empty": False, "missing_label": "text"}
    if options.data_filtering_off:
        rules = {"labels": False}
    augment = from_flags(vars(options), preset="ssm", groups=SSM_GROUPS, weather=SSM_WEATHER, rand_wins=True)
    if augment is None:
        return WordDataset(paths, image_size=size, **rules)
    return TwiceAugmented(paths, augment, size, **rules)


def full_batch(batch: Batch, size: int) -> torch.Tensor:
    """Images of exactly `size` rows: unreadable samples have left the batch, which is filled up from its beginning, for
    every process must bring the same number of rows to the gathered contrast."""
    images = batch.images
    return images if len(images) == size else images[torch.arange(size) % len(images)]


def views_of(images: torch.Tensor, options: argparse.Namespace, draw: tuple[int, ...]) -> Views:
    """Superimposed views of uint8 images `[B, H or 2 * H, W, 3]`; everything random is a function of `draw`
    (seed, micro-step, rank)."""
    rng = np.random.Generator(np.random.SFC64(list(draw)))
    count, height = len(images), options.input_size[0]
    student, teacher = (images, images) if images.shape[1] == height else images.chunk(2, dim=1)
    directions = draw_directions(options.direction, count, rng)
    flips = directions
    if not options.ratio:  # the flips of HF and VF are never done, but their prompts stay
        flips = np.where(np.isin(directions, (HORIZONTAL, VERTICAL)), 0, directions)
    seeds = rng.integers(0, 4096, count) if options.teacher_seeds == "random" else None
    views = superimpose(student, teacher, flips, seeds)
    views.negative.copy_(torch.as_tensor(directions))
    return views
