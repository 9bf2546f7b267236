"""Images of pre-training: resized crops, twice where they are augmented, and the superimposed views of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.data.decode import resize_bicubic
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


def build_dataset(
    data_path: str,
    size: tuple[int, int],
    max_length: int | None,
    augmentation: Mapping[str, object],
    exclude: str = "",
) -> WordDataset:
    """All LMDBs below `data_path`.

    Args:
        size: (height, width) of the images.
        max_length: labels only decide which images are too long; None: they are not looked at.
        augmentation: the published switches by name (`common.augment.recipes.from_flags`).
        exclude: `--exclude`, a list of pictures that are no part of the set.
    """
    paths = discover(data_path)
    rules = {"max_length": max_length, "drop_empty": False, "missing_label": "text"}
    if max_length is None:
        rules = {"labels": False}
    rules["exclude"] = exclude or None
    augment = None
    if any(augmentation.get(f"is{name}_aug") for name in ("rand", "sel", "semantic", "rotation", "learning")):
        from common.augment.recipes import SSM_GROUPS, SSM_WEATHER, from_flags  # the published command augments nothing

        augment = from_flags(augmentation, preset="ssm", groups=SSM_GROUPS, weather=SSM_WEATHER, rand_wins=True)
    if augment is None:
        return WordDataset(paths, image_size=size, **rules)
    return TwiceAugmented(paths, augment, size, **rules)


@dataclass(frozen=True)
class Superimposer:
    """Superimposed views of a batch.

    Attributes:
        height: of the images.
        direction: HF, VF, Hybrid or aug_pool.
        flips: False: HF and VF do not flip, but their prompts stay (`--ratio 0`).
        random_seeds: draw the teacher's transform for each image; otherwise by position in the batch, as published.
    """

    height: int
    direction: str
    flips: bool = True
    random_seeds: bool = False

    def __call__(self, images: torch.Tensor, draw: tuple[int, ...]) -> Views:
        """Views of uint8 images `[B, H or 2 * H, W, 3]`; everything random is a function of `draw`
        (seed, micro-step, rank)."""
        rng = np.random.Generator(np.random.SFC64(list(draw)))
        count = len(images)
        student, teacher = (images, images) if images.shape[1] == self.height else images.chunk(2, dim=1)
        directions = draw_directions(self.direction, count, rng)
        flips = directions
        if not self.flips:
            flips = np.where(np.isin(directions, (HORIZONTAL, VERTICAL)), 0, directions)
        seeds = rng.integers(0, 4096, count) if self.random_seeds else None
        views = superimpose(student, teacher, flips, seeds)
        views.negative.copy_(torch.as_tensor(directions))
        return views
