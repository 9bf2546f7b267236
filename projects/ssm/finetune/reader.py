"""SSM's recognisers as the shared tools use them: images in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.infer.recognizer import Prediction
from common.models.images import to_float_nchw
from projects.ssm.finetune.files import open_model
from projects.ssm.model.build import codec_for

HALF = (0.5, 0.5, 0.5)
OF_THE_ROW = ("name", "charset", "img_size", "patch_size")  # build options of a row; a checkpoint has its own


def open_reader(checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> SSMReader:
    """The registry's `open`: the checkpoint says what it holds, `options` override it."""
    overrides = {name: value for name, value in options.items() if name not in OF_THE_ROW}
    model, arguments = open_model(checkpoint, overrides)
    return SSMReader(model.to(device).eval(), arguments["charset_train"], tuple(arguments["img_size"]), device)


class SSMReader:
    """Greedy reading; decoding runs until every word of the batch has ended."""

    def __init__(self, model: nn.Module, charset: str, image_size: tuple[int, int], device: torch.device) -> None:
        self.model, self.charset, self.image_size, self.device = model, charset, image_size, device
        self.codec = codec_for(model, charset)

    def read(self, images: Tensor, attention: bool = False) -> list[Prediction]:
        """uint8 `[B, H, W, 3]` on the device -> one prediction each."""
        logits = self.model(to_float_nchw(images, HALF, HALF))
        probabilities, ids = logits.float().softmax(-1).max(-1)
        return self.decode([ids.cpu().numpy(), probabilities.cpu().numpy()])

    def decode(self, arrays: Sequence[np.ndarray]) -> list[Prediction]:
        """Ids and probabilities `[B, T]` -> predictions; the confidence counts the end."""
        words = self.codec.decode(arrays[0], arrays[1])
        return [Prediction(word.text, word.confidence, word.char_confidences) for word in words]

    def export_module(self) -> tuple[nn.Module, Callable[[Sequence[np.ndarray]], list[Prediction]]]:
        """The reader with its full number of steps (no early stop), and the decoding of its outputs."""
        return AllSteps(self.model, self.image_size), self.decode


class AllSteps(nn.Module):
    """uint8 `[B, H, W, 3]` -> (ids int64 `[B, T]`, probabilities `[B, T]`), always all steps."""

    def __init__(self, model: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.image_size = model, image_size
        self.longest = getattr(model, "max_label_length", 25)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(to_float_nchw(images, HALF, HALF), self.longest)
        probabilities, ids = logits.softmax(-1).max(-1)
        return ids, probabilities
