"""Pixel targets and sequence losses of DiG (sections 3.1 and 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.images import patchify


def pixel_targets(images: Tensor, patch: int, normalise: bool = False) -> Tensor:
    """What the pixel head must predict: `[B, N, p * p * 3]` from images `[B, 3, H, W]` in [-1, 1].

    Pixels in [0, 1]; with `normalise` each patch and channel is centred and divided by its unbiased deviation + 1e-6.
    """
    target = patchify((images + 1) / 2, (patch, patch))  # from [-1, 1] to [0, 1]
    if not normalise:
        return target
    pixels = target.unflatten(-1, (patch * patch, -1))  # [B, N, p * p, 3]: statistics of each colour alone
    deviation = pixels.var(-2, unbiased=True, keepdim=True).sqrt() + 1e-6
    return ((pixels - pixels.mean(-2, keepdim=True)) / deviation).flatten(-2)


def masked_targets(images: Tensor, mask: Tensor, patch: int, normalise: bool = False) -> list[Tensor]:
    """Targets of the hidden tokens of each view, `[B, n, p * p * 3]`: always the *first* view's pixels, `images` `[B,
    3, H, W]`.

    `mask` bool `[B, V, N]`; every row of a view hides the same number n of tokens.
    """
    target = pixel_targets(images, patch, normalise)
    # boolean indexing flattens images and tokens; as all rows hide n tokens, they can be taken apart again
    return [target[view].view(len(target), -1, target.shape[-1]) for view in mask.unbind(1)]


def pixel_loss(predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean over the views of the mean squared error."""
    errors = [F.mse_loss(prediction.float(), target) for prediction, target in zip(predictions, targets)]
    return torch.stack(errors).mean()


def sequence_cross_entropy(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Sum over the first `lengths` positions of -log p(target), divided by the *batch size* (not by the characters).

    `logits` `[B, L, C]`, `targets` int64 `[B, L]`, `lengths` `[B]`.
    """
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return (losses * valid(targets, lengths)).sum() / len(targets)


def valid(targets: Tensor, lengths: Tensor) -> Tensor:
    """True at positions before each row's length: `[B, L]`."""
    return torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, lengths: Tensor, smoothing: float, legacy: bool = False
) -> Tensor:
    """Label smoothing: (1 - s) * nll + s * mean over classes of -log p, masked and summed, divided by the batch size.

    `legacy` gives the number of the published code, whose nll `[BT, 1]` and smooth term `[BT]` broadcast to `[BT,
    BT]`: each position's nll counts BT times, and every position's smooth term counts once for each valid position.
    """
    log_p = logits.float().log_softmax(-1).flatten(0, 1)  # [BL, C]
    nll = -log_p.gather(1, targets.flatten()[:, None])[:, 0]
    smooth = -log_p.mean(-1)
    mask = valid(targets, lengths).flatten()
    if legacy:
        total = (1 - smoothing) * len(nll) * (nll * mask).sum() + smoothing * smooth.sum() * mask.sum()
    else:
        total = (((1 - smoothing) * nll + smoothing * smooth) * mask).sum()
    return total / len(targets)


def sequence_loss(
    logits: Tensor, targets: Tensor, lengths: Tensor, smoothing: float = 0.0, legacy: bool = False
) -> Tensor:
    """The loss that `--smoothing` asks for: plain cross-entropy at 0, label smoothing above."""
    if smoothing > 0:
        return smoothed_cross_entropy(logits, targets, lengths, smoothing, legacy)
    return sequence_cross_entropy(logits, targets, lengths)
