"""What changes during pre-training besides the learning rate (`common.train.schedule` has that and the momentum)."""

from __future__ import annotations

import numpy as np

from common.train.schedule import warmup_cosine_table


def contrast_weights(
    epoch: int, iterations: int, weight: float, start_epoch: int = 0, warmup_steps: int = 0
) -> np.ndarray:
    """The contrastive loss's weight at each of an epoch's `iterations`.

    0 before `start_epoch`; in that epoch a ramp from 0 to `weight`, both included, over the first `warmup_steps`
    steps (cut to the epoch), then `weight`; afterwards `weight`.
    """
    if epoch < start_epoch:
        return np.zeros(iterations)
    weights = np.full(iterations, float(weight))
    if epoch == start_epoch:
        ramp = min(warmup_steps, iterations)
        weights[:ramp] = np.linspace(0, weight, ramp)
    return weights


def step_table(
    base_value: float,
    final_value: float,
    epochs: int,
    niter_per_ep: int,
    warmup_epochs: int = 0,
    warmup_steps: int = -1,
) -> np.ndarray:
    """Value of every step of a run: a linear warm-up with both ends, then a cosine that starts at the base again.

    `warmup_steps` > 0 replaces `warmup_epochs` and, unlike in the published code, works without warm-up epochs too.
    Raises ValueError if the warm-up is longer than the run.
    """
    warmup = warmup_steps if warmup_steps > 0 else warmup_epochs * niter_per_ep
    return warmup_cosine_table(base_value, final_value, epochs * niter_per_ep, warmup)
