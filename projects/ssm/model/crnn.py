"""CRNN (Shi, Bai and Yao, TPAMI 2017): seven convolutions, two BiLSTMs, CTC."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.attention import BidirectionalLSTM
from projects.ssm.model.layers import init_weights

BLANK = 0


def ctc_loss(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """CTC over `logits` `[B, T, C]`, each word's loss divided by its length, impossible ones counted as zero.

    `targets` `[B, L]` hold class ids (blank 0 as padding), `lengths` `[B]` the characters of each word.
    """
    steps = torch.full((len(logits),), logits.shape[1], dtype=torch.long)
    log_probabilities = logits.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probabilities, targets, steps, lengths.cpu(), blank=BLANK, zero_infinity=True)


class CTCRecogniser(nn.Module):
    """What the CTC models share: the loss, and no end or begin classes (0 is the blank)."""

    def no_weight_decay(self) -> set[str]:
        return set()

    def loss(self, images: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
        return ctc_loss(self(images), targets, lengths)

    def forward(self, images: Tensor, max_length: int | None = None) -> Tensor:
        """Logits `[B, T, C + 1]`; CTC knows no step limit, `max_length` is accepted for the common signature."""
        return self.model(images)


class CRNN(CTCRecogniser):
    """Reads `[B, 3, 32, W]` crops, normalised to [-1, 1]: logits `[B, W // 4 + 1, C + 1]`.

    `output_channel` (additional): width of the last convolutions; the others become narrower in proportion.
    """

    def __init__(
        self,
        charset_size: int,
        max_label_length: int = 25,
        img_size: tuple[int, int] = (32, 128),
        *,
        hidden_size: int = 256,
        leaky_relu: bool = False,
        output_channel: int = 512,
    ) -> None:
        super().__init__()
        if img_size[0] % 16:
            raise ValueError(f"CRNN: img_size: height {img_size[0]} must be a multiple of 16")
        self.model = CRNNBackbone(charset_size + 1, hidden_size, leaky_relu, output_channel)


class CRNNBackbone(nn.Module):
    """`cnn.*` (VGG-like, height 32 -> 1) and `rnn.{0,1}`."""

    channels = (64, 128, 256, 256, 512, 512, 512)
    normalised = (2, 4, 6)  # convolutions followed by a batch norm
    # convolution -> (kernel, stride, padding): the last two halve the height only, so that narrow letters keep columns
    pools = {0: (2, 2, 0), 1: (2, 2, 0), 3: (2, (2, 1), (0, 1)), 5: (2, (2, 1), (0, 1))}

    def __init__(self, classes: int, hidden_size: int, leaky_relu: bool, output_channel: int = 512) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = 3
        for index, published in enumerate(self.channels):
            channels = published * output_channel // self.channels[-1]
            last = index == len(self.channels) - 1
            norm = index in self.normalised
            layers[f"conv{index}"] = nn.Conv2d(
                width, channels, 2 if last else 3, padding=0 if last else 1, bias=not norm
            )
            if norm:
                layers[f"batchnorm{index}"] = nn.BatchNorm2d(channels)
            layers[f"relu{index}"] = nn.LeakyReLU(0.2, inplace=True) if leaky_relu else nn.ReLU(inplace=True)
            if index in self.pools:
                layers[f"pooling{index}"] = nn.MaxPool2d(*self.pools[index])
            width = channels
        self.cnn = nn.Sequential(layers)
        self.rnn = nn.Sequential(
            BidirectionalLSTM(width, hidden_size, hidden_size), BidirectionalLSTM(hidden_size, hidden_size, classes)
        )
        self.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.cnn(images)  # [B, 512, 1, W / 4 + 1]
        return self.rnn(maps.mean(2).transpose(1, 2))  # columns are the steps in time
