"""T's tensorboard pictures, under the published names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from common.data.loader import Batch
from projects.siga.model.losses import glyph_targets, predicted_text

if TYPE_CHECKING:
    from projects.siga.method import Stepper

SHOWN = 4


def strip(maps: torch.Tensor, classes: int = 1) -> np.ndarray:
    """Maps [B, h, w] with values in 0…classes -> one grey picture uint8 [B·h, w, 3], one below the other."""
    grey = (maps.float() * (255.0 / classes)).clamp(0, 255).byte().cpu().numpy()
    return np.repeat(grey.reshape(-1, grey.shape[2])[:, :, None], 3, axis=2)


@torch.no_grad()
def glyph_panels(stepper: Stepper, batch: Batch) -> dict[str, np.ndarray]:
    """Images, pseudo-masks, predicted masks and character maps of the first samples of a batch, uint8 [h, w, 3]."""
    model, device = stepper.bare, stepper.dist.device
    training = model.training
    model.eval()
    images = batch.images[:SHOWN].to(device)
    ids, lengths = stepper.codec.encode(batch.labels[:SHOWN])
    output = model(model.normalise(images), torch.from_numpy(ids).to(device)[:, :-1])
    model.train(training)
    mask, channels = predicted_text(output.maps.seg_logits), output.maps.low.shape[1] - 1
    size = tuple(output.maps.low.shape[2:])
    targets = glyph_targets(mask, output.attention, torch.from_numpy(lengths).to(device) - 1, size)
    return {
        "Input image": images.flatten(0, 1).cpu().numpy(),
        "GT mask": strip(batch.masks[:SHOWN]),
        "Mask_Loc Maps": strip(mask[:, 0]),
        "char_segmention_Middle Maps": strip(output.maps.middle.argmax(dim=1), channels),
        "char_segmention_Low Maps": strip(output.maps.low.argmax(dim=1), channels),
        "Single_char_mask Maps": strip(targets.classes, channels),
    }
