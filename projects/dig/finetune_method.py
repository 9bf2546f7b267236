"""Fine-tuning in the training loop: the loss of a micro-batch, the rates of a step, the averaged copy; augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.data.loader import Batch
from common.text.codecs import EosPadUnkCodec
from common.train.distributed import unwrap
from common.train.loop import Clock
from common.train.optim import Ema, Precision
from projects.dig import data, text
from projects.dig.model.losses import sequence_loss


@dataclass
class FineTuning:
    """The recogniser's `Method` for `common.train.loop.Loop`.

    Attributes:
        model: a recogniser, perhaps wrapped.
        lr, weight_decay: of every step.
        smoothing, legacy_smoothing: label smoothing, see `smoothed_cross_entropy`.
        whole: keep all columns of the targets; else those after the batch's longest word are cut.
        ema: the averaged copy of `--model_ema`, or None.
    """

    model: nn.Module
    precision: Precision
    device: torch.device
    codec: EosPadUnkCodec
    lr: np.ndarray
    weight_decay: np.ndarray
    smoothing: float = 0.0
    legacy_smoothing: bool = False
    whole: bool = False
    ema: Ema | None = None

    def losses(self, batch: Batch, clock: Clock, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy under teacher forcing, and the share of words that the teacher-forced decoder reads right."""
        images = data.normalise(batch.images.to(self.device, non_blocking=True))
        targets, lengths = data.targets(self.codec, batch.labels, self.device, trim=not self.whole)
        with self.precision.autocast():
            logits = self.model(images, targets, lengths).scores
        loss = sequence_loss(logits, targets, lengths, self.smoothing, self.legacy_smoothing)
        right = text.equal_words(logits.detach().argmax(-1), targets, self.codec)
        return loss, {"loss": loss.detach(), "class_acc": right.float().mean()}

    def rates(self, step: int) -> tuple[float, float]:
        return float(self.lr[step]), float(self.weight_decay[step])

    def stepped(self, clock: Clock) -> None:
        """Move the averaged copy of `--model_ema` towards the trained weights."""
        if self.ema is not None:
            self.ema.update(unwrap(self.model))


class HostModel:
    """A model's weights as the host's copies, for an averaged copy that must not take the device's memory."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Names and tensors, in the host's memory."""
        return {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}


class HostEma(Ema):
    """`--model_ema_force_cpu`: the averaged copy lives in the host's memory."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(HostModel(model), decay)

    def update(self, model: nn.Module, decay: float | None = None) -> None:
        """Move towards the model's present values."""
        super().update(HostModel(model), decay)


def augmentation(
    image_size: tuple[int, int], *, abinet: bool, frozen: bool, seed: int, rank: int, lmdbs: int
) -> Callable | list[Callable]:
    """The distortions of `--num_view 2`: SeqCLR's, or with `abinet` ABINet's.

    `frozen` (`--legacy-frozen-augment`) gives one for each of the `lmdbs`, whose kind and strength depend on
    `seed` + `rank` alone.
    """
    if not abinet:
        from common.augment.views import ContrastiveView  # operations that only this flag needs; so below

        return ContrastiveView(size=image_size)
    from common.augment.abinet import AbinetAugment, published_strengths  # see above

    if frozen:
        return [AbinetAugment(one) for one in published_strengths(seed + rank, lmdbs)]
    return AbinetAugment()
