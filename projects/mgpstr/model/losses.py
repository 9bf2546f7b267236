"""Losses of MGP-STR and ACDS-STR (spec section 6)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from common.losses.linear_cross_entropy import linear_cross_entropy

IGNORED = 0


def sequence_loss(tokens: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the positions of the batch whose target is not 0.

    Args:
        tokens: [B, T, D] before the head.
        head: D -> C classes.
        targets: int64 [B, T]; 0 is ignored (pads, the characters' start, and whatever genuine class 0 there is).

    Ignored positions, most of the T of a word, never reach the head, and the logits of the others are gone when this
    returns.
    """
    learnt = targets != IGNORED
    return linear_cross_entropy(tokens[learnt], head, targets[learnt])


def logits_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same loss from logits [B, T, C] that were made for every position."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def mask_loss(
    maps: torch.Tensor, masks: torch.Tensor, weights: tuple[float, float] = (1.0, 2.0), with_logits: bool = False
) -> torch.Tensor:
    """Weighted binary cross-entropy between character maps and box masks (ACDS-STR).

    Args:
        maps: any shape; the published network has no sigmoid, so the raw map is clamped to [0.01, 0.99] and pixels
            outside give no gradient.
        masks: same shape, 0 or 1.
        weights: of the pixels outside and inside the masks.
        with_logits: take the maps as logits instead (not the published loss).
    """
    background, foreground = weights
    maps, masks = maps.float(), masks.float()
    if with_logits:
        pixel_weights = torch.where(masks > 0.5, foreground, background)
        return F.binary_cross_entropy_with_logits(maps, masks, weight=pixel_weights)
    inside = maps.clamp(0.01, 0.99)  # no gradient from pixels outside of it
    return -(foreground * masks * inside.log() + background * (1 - masks) * (1 - inside).log()).mean()
