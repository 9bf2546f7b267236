"""DiG's training run: the shared rhythm of epochs with the published schedules and optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.train.epoch_trainer import EpochTrainer, Stopped
from common.train.optim import build_optimizer
from projects.dig import flags as shared
from projects.dig.files import state_of
from projects.dig.optim import step_table

STATE = EpochTrainer.state_name

__all__ = ["STATE", "Stopped", "Trainer", "masks_of_step"]


class Trainer(EpochTrainer):
    """One training run of either script."""

    def schedules(self) -> None:
        """Learning rate and weight decay of every step."""
        o = self.options
        peak = o.lr * o.batch_size * self.accumulate * self.dist.world_size / 256
        end = o.weight_decay if o.weight_decay_end is None else o.weight_decay_end
        try:
            self.lr = step_table(peak, o.min_lr, o.epochs, self.per_epoch, o.warmup_epochs, o.warmup_steps)
        except ValueError:
            raise UserError(
                f"--warmup_epochs, --warmup_steps: the warm-up is longer than the {o.epochs * self.per_epoch} steps "
                f"of the run ({self.per_epoch} an epoch)"
            ) from None
        self.weight_decay = step_table(o.weight_decay, end, o.epochs, self.per_epoch)

    def print_plan(self, samples: int) -> None:
        """The lines of the published console that say how much a step and an epoch are."""
        o = self.options
        batch = o.batch_size * self.accumulate * self.dist.world_size
        print(f"LR = {o.lr * batch / 256:.8f}")
        print(f"Batch size = {batch}")
        if hasattr(o, "update_freq"):
            print(f"Update frequent = {o.update_freq}")
            print(f"Number of training examples = {samples}")
            print(f"Number of training training per epoch = {self.per_epoch}")
        else:
            print(f"Number of training steps = {self.per_epoch}")
            print(f"Number of training examples per epoch = {batch * self.per_epoch}")

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """What `--opt` asks for."""
        name = shared.optimizer_name(self.options)
        return build_optimizer(name, groups, float(self.lr[0]), **shared.optimizer_options(self.options))

    def weights_of(self, content: dict[str, Any], what: str) -> dict[str, Tensor]:
        """Of any published spelling."""
        return state_of(content, what=what)


def masks_of_step(mask, seed: int, step: int, rank: int, count: int) -> np.ndarray:
    """Masks `[count, views, tokens]` of one step: a function of seed, step and rank, so a resumed run draws the
    same."""
    return mask.batch(np.random.Generator(np.random.SFC64([seed, step, rank])), count)
