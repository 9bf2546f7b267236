"""One epoch of pre-training: losses of a step, momentum and contrast weight, meters."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.loader import Batch
from common.train.progress import EpochLog
from common.train.schedule import constant, momentum_cosine
from projects.dig.data import views
from projects.dig.model.losses import masked_targets, pixel_loss
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import MODELS, MoCoViT, PretrainOutput, build_pretrainer
from projects.dig.optim import contrast_weights
from projects.dig.trainer import Trainer, masks_of_step


def build_model(options: argparse.Namespace) -> MoCoViT:
    """The pre-trainer that the flags ask for."""
    return build_pretrainer(options.model, **build_options(options))


def build_options(options: argparse.Namespace) -> dict:
    """Constructor arguments, also kept in the checkpoints' cards."""
    return {
        "dim": options.moco_dim,
        "mlp_dim": options.moco_mlp_dim,
        "temperature": options.moco_t,
        "windows": options.num_windows,
        "patchnet_name": options.patchnet_name,
        "drop_path": options.drop_path,
        "image_size": (options.input_h, options.input_w),
    }


def uses_all_parameters(model: str) -> bool:
    """False where a parameter never gets a gradient (the contrast-only model's mask token)."""
    return MODELS[model][0] != "moco"


@dataclass
class Losses:
    """The loss to minimise and what the meters show of it."""

    total: Tensor
    shown: dict[str, Tensor]


class Objective:
    """Pixel and contrastive loss of a batch, weighted as the flags say (equation 5 with the weights of the code)."""

    def __init__(self, options: argparse.Namespace, patch: int) -> None:
        self.options, self.patch = options, patch

    def __call__(self, output: PretrainOutput, images: Tensor, mask: Tensor, contrast_weight: float) -> Losses:
        """`images` is the first view `[B, 3, H, W]`, whose pixels are the target; `mask` bool `[B, 2, N]`."""
        shown: dict[str, Tensor] = {}
        total = images.new_zeros(())
        if output.contrast is not None:
            shown["loss_contrast"] = output.contrast
            shown.update(output.accuracies)
            total = total + contrast_weight * output.contrast
        if output.pixels is not None:
            hidden = mask[:, :1] if self.options.only_mim_on_ori_img else mask
            targets = masked_targets(images, hidden, self.patch, self.options.normlize_target)
            shown["loss_pixel"] = pixel_loss(output.pixels, targets)
            total = total + self.options.loss_weight_pixel * shown["loss_pixel"]
        shown["loss"] = total
        return Losses(total, {name: value.detach() for name, value in shown.items()})


def train_one_epoch(trainer: Trainer, epoch: int) -> dict[str, float]:
    """Run the steps left in the epoch; returns the mean of each meter over all ranks."""
    options, per_epoch, model = trainer.options, trainer.per_epoch, trainer.model
    grid = trainer.bare.encoder.grid
    masking = RandomMasking(grid, options.mask_ratio, views=2)
    momentum = momentum_cosine(options.moco_m, options.epochs) if options.use_moco_m_cos else constant(options.moco_m)
    weights = contrast_weights(
        epoch, per_epoch, options.loss_weight_contrast, options.contrast_start_epoch, options.contrast_warmup_steps
    )
    objective = Objective(options, trainer.bare.encoder.patch)
    log = EpochLog(f"Epoch: [{epoch}]", every=100, stamp=True)
    model.train()
    for (batch,) in trainer.steps(log):
        step, place = trainer.step, trainer.step % per_epoch
        images, augmented, mask = to_device(trainer, batch, masking)
        kept = momentum(step / per_epoch)

        with trainer.amp.autocast():
            output = model(images, augmented, mask, kept, options.only_mim_on_ori_img)
        losses = objective(output, images, mask, weights[place])
        trainer.backward(losses.total, batch)
        norm = trainer.optimise()
        trainer.record(log, {"moco_m": kept, **losses.shown}, norm, len(images))
        if place and place % (10 * options.eval_freq) == 0:
            trainer.save_checkpoint(f"{epoch}_{place}", f"{epoch}_{place}")
    return log.averages(trainer.dist)


def to_device(trainer: Trainer, batch: Batch, masking: RandomMasking) -> tuple[Tensor, Tensor, Tensor]:
    """Both views `[B, 3, H, W]` and the mask `[B, 2, N]`, of exactly the batch size.

    Samples that cannot be read have left their batch; it is filled up again from its beginning, for every process must
    bring the same number of rows to the gathered contrast.
    """
    device, size = trainer.dist.device, trainer.options.batch_size
    images = batch.images
    if len(images) < size:
        images = images[torch.arange(size) % len(images)]
    mask = masks_of_step(masking, trainer.options.seed, trainer.step, trainer.dist.rank, size)
    first, second = views(images.to(device, non_blocking=True))
    return first, second, torch.from_numpy(mask).to(device, non_blocking=True)


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
