"""A second look at crops that the default reader is unsure of: nearer, from further away, levelled; the looks vote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.infer.recognizer import Prediction

UNSURE = 0.8  # words that are read with more confidence are looked at once


def changed(images: Tensor, lift: float, height: float = 1.0, width: float = 1.0) -> Tensor:
    """uint8 `[B, H, W, 3]`: columns moved up, the right edge by `lift` times half the height and the left one down by
    as much, and the picture stretched around its middle by `height` and `width`; edges are repeated."""
    pictures = images.permute(0, 3, 1, 2).float()
    matrix = pictures.new_tensor([[1 / width, 0, 0], [lift / height, 1 / height, 0]])
    grid = F.affine_grid(matrix.expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return moved.round().to(torch.uint8).permute(0, 2, 3, 1)


# Chosen among fifteen on 1,250 words of the training splits (none of the validation tenth): the best four.
LOOKS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda images: changed(images, 0.0, height=1.25, width=1.08),  # nearer
    lambda images: changed(images, 0.0, height=0.75, width=0.85),  # further away
    lambda images: changed(images, 0.9, height=1.4),  # a word that falls is levelled
    lambda images: changed(images, -0.5, height=1.4),  # a word that climbs is levelled
)


def second_look(
    images: Tensor, first: Sequence[Prediction], read: Callable[[Tensor], list[Prediction]]
) -> list[Prediction]:
    """Read the crops that were read with a confidence below `UNSURE` in other ways too, and let the looks vote.

    Args:
        images: uint8 `[B, H, W, 3]`.
        first: what was read in them.
        read: reads a batch of any size.

    Returns:
        `first` with the unsure words replaced: the text with the largest sum of confidences, from its most confident
        look. Its confidence is that look's times the share of the sum that spoke for the text.
    """
    unsure = [i for i, word in enumerate(first) if word.confidence < UNSURE]
    if not unsure:
        return list(first)
    doubtful = images[unsure]
    again = read(torch.cat([look(doubtful) for look in LOOKS]))
    settled = list(first)
    for row, i in enumerate(unsure):
        votes = [first[i], *again[row :: len(unsure)]]
        weight = {vote.text: 0.0 for vote in votes}
        for vote in votes:
            weight[vote.text] += vote.confidence
        text = max(weight, key=weight.__getitem__)
        best = max((vote for vote in votes if vote.text == text), key=lambda vote: vote.confidence)
        share = weight[text] / max(sum(weight.values()), 1e-9)
        settled[i] = replace(best, confidence=best.confidence * share)
    return settled
