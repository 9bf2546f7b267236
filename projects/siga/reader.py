"""A trained SIGA model as the shared tools use it: images in, text out, with the glyph maps that explain it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.infer.recognizer import Prediction
from common.train.checkpoint import load
from projects.siga.model.base import SigaModel
from projects.siga.model.build import Codec, build_row, load_weights, make_codec
from projects.siga.model.losses import glyph_targets, predicted_text


def open_reader(checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> SigaReader:
    """The registry's `open`. Raises UserError for a checkpoint that does not fit these options."""
    model = build_row(**options)
    load_weights(model, load(checkpoint), str(checkpoint))
    codec = make_codec(model.settings.family, options.get("character"), options.get("batch_max_length", 25))
    return SigaReader(model.to(device).eval(), codec, device)


class SigaReader:
    """Reads with the Share branch; the maps shown are the fine glyph attention, one per character."""

    def __init__(self, model: SigaModel, codec: Codec, device: torch.device) -> None:
        self.model, self.codec, self.device = model, codec, device
        self.family, self.image_size = model.settings.family, model.settings.image_size
        self.charset = codec.charset

    def read(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        """uint8 [B, H, W, 3] on the model's device -> one prediction each; `attention` adds maps [T, h, w] in [0,
        1].
        """
        reading, maps = self.model.read(self.model.normalise(images))
        probabilities, ids = reading.logits.float().softmax(dim=2).max(dim=2)
        found = decode(self.codec, ids.cpu().numpy(), probabilities.cpu().numpy())
        if not attention:
            return found
        weights = maps.low[:, 1:].float().flatten(2).softmax(dim=2).unflatten(2, maps.low.shape[2:])
        weights = (weights / weights.amax(dim=(2, 3), keepdim=True)).cpu().numpy()
        return [
            Prediction(one.text, one.confidence, one.char_confidences, weights[row, : len(one.text)])
            for row, one in enumerate(found)
        ]

    def extras(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Pictures for the report [B, h, w]: the predicted text mask (0/1) and the glyph pseudo-labels made of it
        (integers: 0 background, t = character t)."""
        inputs = self.model.normalise(images)
        output = self.model(inputs)
        ended = output.logits["share"].argmax(dim=2) == self.model.end_id
        lengths = torch.where(ended.any(dim=1), ended.int().argmax(dim=1), ended.shape[1])
        mask = predicted_text(output.maps.seg_logits)
        targets = glyph_targets(mask, output.attention, lengths, tuple(output.maps.low.shape[2:]))
        return {"text mask": mask[:, 0].cpu().numpy(), "glyph pseudo-labels": targets.classes.cpu().numpy()}

    def export_module(self) -> tuple[nn.Module, Callable[[Sequence[np.ndarray]], list[Prediction]]]:
        """The Share branch with its full number of greedy steps, and the decoding of its two outputs."""
        return ShareModule(self.model, self.family), lambda arrays: decode(self.codec, arrays[0], arrays[1])


def decode(codec: Codec, ids: np.ndarray, probabilities: np.ndarray) -> list[Prediction]:
    """Ids and maximum probabilities [B, T] -> predictions by the published decoding."""
    return [Prediction(one.text, one.confidence, one.char_confidences) for one in codec.decode(ids, probabilities)]


class ShareModule(nn.Module):
    """uint8 [B, H, W, 3] -> (ids int64 [B, T], probabilities [B, T]), without anything that depends on the data's
    length.
    """

    def __init__(self, model: SigaModel, family: str) -> None:
        super().__init__()
        self.model, self.family = model, family

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        reading, _ = self.model.read(self.model.normalise(images), stop_early=False)
        probabilities, ids = reading.logits.softmax(dim=2).max(dim=2)
        return ids, probabilities
