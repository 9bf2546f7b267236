"""Losses of superimposition pre-training and their weights over the run (SSM, section 3.3; spec section 6.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.losses.contrastive import info_nce
from projects.ssm.model.pretrainer import SSMOutput, pixel_target

TEMPERATURE = 0.2  # tau of L_dis


@dataclass
class Losses:
    """The loss to minimise and what the meters show of it."""

    total: Tensor
    shown: dict[str, float | Tensor]


def feature_weight(epoch: int, start: int = 10, ramp: float = 40.0) -> float:
    """alpha of an epoch: 0 before `start`, then 1 / ramp more each epoch, the first one included."""
    return max(epoch - start + 1, 0) / ramp


def dense_loss(queries: Tensor, keys: Tensor, norm: nn.Module) -> Tensor:
    """The paper's L_den: mean over rows of ||norm(q) - LN(k)||^2 / d; rows `[N, d]`, no gradient through `keys`."""
    return F.mse_loss(norm(queries), F.layer_norm(keys.detach(), keys.shape[-1:], eps=1e-5))


def objective(
    output: SSMOutput,
    originals: Tensor,
    inverted: Tensor,
    patch: tuple[int, int],
    *,
    weight: float,
    normalise: bool = False,
    dense_norm: nn.Module | None = None,
) -> Losses:
    """L = L_pix + alpha (L_dis [+ L_den]) of a batch.

    Args:
        output: the network's separation of the batch.
        originals, inverted: `[B, 3, H, W]` in [0, 1], what the two prompts must give back.
        patch: (height, width) of a token.
        weight: alpha; the feature losses are computed and shown whatever it is, as published.
        normalise: standardise the pixel targets per patch.
        dense_norm: the normalisation of the online rows, which turns L_den on.
    """
    pixel = torch.zeros((), device=originals.device)  # L_pix, L_dis and L_den are sums over the two images
    contrast, dense = pixel, pixel
    for part, images in ((output.positive, originals), (output.negative, inverted)):
        pixel = pixel + F.mse_loss(part.pixels.float(), pixel_target(images, patch, normalise))
        contrast = contrast + info_nce(part.q, part.k, TEMPERATURE).loss
        if dense_norm is not None:
            dense = dense + dense_loss(part.q.float(), part.k.float(), dense_norm)
    total = pixel + weight * (contrast + dense)
    shown: dict[str, float | Tensor] = {
        "loss_pix": pixel.detach(), "loss_feat_ratio": weight, "loss_feat_cl": contrast.detach(),
    }  # fmt: skip
    if dense_norm is not None:
        shown["loss_feat_den"] = dense.detach()
    return Losses(total, {**shown, "loss": total.detach()})
