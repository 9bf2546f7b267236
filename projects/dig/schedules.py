"""What changes during pre-training besides the learning rate (`common.train.schedule` has that and the momentum)."""

from __future__ import annotations

import numpy as np


def contrast_weights(epoch: int, iterations: int, weight: float, start_epoch: int = 0, warmup_steps: int = 0) -> np.ndarray:
    """The contrastive loss's weight at each of an epoch's `iterations`.

    0 before `start_epoch`; in that epoch a ramp from 0 to `weight`, both included, over the first `warmup_steps` steps (cut
    to the epoch), then `weight`; afterwards `weight`.
    """
    if epoch < start_epoch:
        return np.zeros(iterations)
    weights = np.full(iterations, float(weight))
    if epoch == start_epoch:
        ramp = min(warmup_steps, iterations)
        weights[:ramp] = np.linspace(0, weight, ramp)
    return weights
