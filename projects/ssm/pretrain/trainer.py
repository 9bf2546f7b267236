"""The pre-training run: the shared rhythm of epochs with SSM's schedules, meters and steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.train.epoch_trainer import EpochTrainer
from common.train.optim import build_optimizer
from common.train.progress import EpochLog
from common.train.schedule import constant, momentum_cosine, warmup_cosine
from projects.ssm.finetune.weights import tensors_of
from projects.ssm.pretrain.data import full_batch, views_of
from projects.ssm.pretrain.losses import feature_weight, objective


class Trainer(EpochTrainer):
    """One run of `sim_pretrain.py`."""

    accumulate_flag = "--accum_iter"
    clip_norm = 0.0  # --clip_grad has no effect, as published

    def schedules(self) -> None:
        """Learning rate of every step, at t = epoch + batch / batches of an epoch; weight decay stays."""
        o, batches = self.options, len(self.sampler)
        if o.debug:
            self.per_epoch = min(self.per_epoch, 50)
        epochs, places = np.divmod(np.arange(o.epochs * self.per_epoch), self.per_epoch)
        self.times = epochs + places * self.accumulate / batches
        rate = warmup_cosine(o.lr, o.epochs, o.warmup_epochs, o.min_lr)
        self.lr, self.weight_decay = np.array([rate(float(t)) for t in self.times]), None
        self.momentum = momentum_cosine(o.mm, o.epochs) if o.mmschedule == "cosine" else constant(o.mm)

    def weights_of(self, content: Any, what: str) -> dict[str, Tensor]:
        """The model's tensors. Raises `UserError` for a file without any."""
        return tensors_of(content, what)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW with the published betas."""
        return build_optimizer("adamw", groups, float(self.lr[0]), betas=(0.9, 0.95), eps=1e-8)

    def record(self, log: EpochLog, parts: list[dict[str, float | Tensor]], norm: Tensor, samples: int) -> None:
        """Meters in the published order, which take every micro-batch; TensorBoard scalars (counted from 0) and
        metrics.jsonl, which take the mean of the step's micro-batches, with the norm too."""
        rate = float(self.lr[self.step - 1])
        for losses in parts:
            log.add(lr=rate, **losses)
            if "mm" in losses:
                log.add(loss=losses["loss"])  # the published loop updates this meter twice
        log.meters.count(samples * self.dist.world_size, log.waiting.last)
        mean = {name: sum(losses[name] for losses in parts) / len(parts) for name in parts[0]}
        shown = {"lr": rate, **mean, "grad_norm": norm}
        if (self.step - 1) % 20 == 0:
            for name, value in shown.items():
                self.board.scalar(name, value, self.step - 1)
        if self.step == 1 or self.step % 20 == 0:
            self.note(log, **shown)


def train_one_epoch(trainer: Trainer, epoch: int) -> dict[str, float]:
    """Run the steps left in the epoch; returns the mean of each meter over all ranks."""
    options, model, device = trainer.options, trainer.model, trainer.dist.device
    log = EpochLog(f"Epoch: [{epoch}]", every=20, recent="median", last_value=("lr",))
    weight = feature_weight(epoch, options.feat_start_epoch, options.feat_ramp)
    dense_norm = trainer.bare.student_norm if options.dense_loss else None
    model.train()
    for micro_batches in trainer.steps(log):
        # as published, the momentum network moves with the first micro-batch of a step
        momentum = float(trainer.momentum(float(trainer.times[trainer.step])))
        shown: list[dict[str, float | Tensor]] = []
        for number, batch in enumerate(micro_batches):
            images = full_batch(batch, options.batch_size).to(device, non_blocking=True)
            draw = (options.seed, trainer.step * trainer.accumulate + number, trainer.dist.rank)
            views = views_of(images, options, draw)
            directions = torch.stack([views.positive, views.negative])
            with trainer.amp.autocast():
                output = model(views.student_mix, views.teacher_mix, directions, None if number else momentum)
            losses = objective(
                output, views.student, views.student_flipped, trainer.bare.patch_size,
                weight=weight, normalise=options.norm_pix_loss, dense_norm=dense_norm,
            )  # fmt: skip
            trainer.backward(losses.total, batch)
            shown.append({"mm": momentum, **losses.shown})
        norm = trainer.optimise()
        trainer.record(log, shown, norm, options.batch_size * len(micro_batches))
    return log.averages(trainer.dist)
