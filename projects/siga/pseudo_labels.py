"""Glyph pseudo-labels: where the network's own text mask and its own sequence attention say each character is (section
3.2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

ATTENTION_THRESHOLD, FOREGROUND_SHARE = 0.05, 0.4


def valid_steps(lengths: torch.Tensor, steps: int) -> torch.Tensor:
    """bool [B, T]: step t belongs to a word of `lengths` [B] characters."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def predicted_text(seg_logits: torch.Tensor) -> torch.Tensor:
    """The predicted text mask F: float 0/1 [B, 1, H, W] where class 1 has more than half; detached."""
    return (seg_logits.detach().float().softmax(dim=1)[:, 1:] > 0.5).float()


class GlyphTargets(NamedTuple):
    """`layers` 0/1 [B, T, h, w], one per character (they may overlap); `classes` int64 [B, h, w]: 0 background or the
    first character that claims a pixel, counted from 1; `foreground` 0/1 [B, 1, h, w]."""

    layers: torch.Tensor
    classes: torch.Tensor
    foreground: torch.Tensor


@torch.no_grad()
def glyph_targets(
    text_mask: torch.Tensor, attention: torch.Tensor, lengths: torch.Tensor, size: tuple[int, int]
) -> GlyphTargets:
    """Pseudo-labels at one scale.

    `text_mask` 0/1 [B, 1, H, W]; `attention` [B, T, W'] of the "ours" decoder; `lengths` characters per word; `size`
    (h, w). A character owns the foreground of the columns where its attention, stretched to w, exceeds 0.05. A
    foreground pixel that nobody claims counts as background in `classes`.
    """
    foreground = (F.interpolate(text_mask, size, mode="bilinear", align_corners=False) >= FOREGROUND_SHARE).float()
    kept = attention.float() * valid_steps(lengths, attention.shape[1])[..., None]
    columns = F.interpolate(kept, size[1], mode="linear", align_corners=False) > ATTENTION_THRESHOLD
    layers = columns[:, :, None, :] * foreground
    # "First" is spelled out: the published arg-max over 0/1 maps leaves ties to the device.
    order = torch.arange(layers.shape[1], 0, -1, device=layers.device, dtype=layers.dtype)
    best = (layers * order[:, None, None]).amax(dim=1)
    classes = torch.where(best > 0, layers.shape[1] + 1 - best, 0.0).long()
    return GlyphTargets(layers, classes, foreground)
