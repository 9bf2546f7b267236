"""A fine-tuned DiG recogniser as the shared tools use it: images in, text out, with the decoder's attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.infer.recognizer import Prediction
from common.models.decoders import greedy_decode
from common.models.weights import load_strict
from common.text.codecs import EosPadUnkCodec
from common.train.checkpoint import load
from projects.dig.data import normalise
from projects.dig.files import shape_of, state_of
from projects.dig.model.recogniser import RecModel, Recogniser, build_recogniser
from projects.dig.text import codec_of_classes

DEFAULT_STEPS = 25


def open_reader(checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> DigReader:
    """The registry's `open`: the checkpoint's tensors decide size and decoder, `options` the rest.

    Options that are read: max_len (25), one_row (False), image_size ((32, 128)), charset (by
    the number of classes). Raises `UserError` for a checkpoint
    that is no DiG recogniser.
    """
    state = state_of(load(checkpoint), what=str(checkpoint))
    chosen = shape_of(state, str(checkpoint)).options()
    chosen |= {name: options[name] for name in ("max_len", "one_row", "image_size") if name in options}
    chosen.setdefault("max_len", DEFAULT_STEPS)
    model = build_recogniser(**chosen)
    load_strict(model, state, what=str(checkpoint))
    charset = options.get("charset") or codec_of_classes(model.classes, model.max_len).charset
    return DigReader(model.to(device).eval(), device, charset, tuple(chosen.get("image_size", (32, 128))))


class DigReader:
    """Greedy reading with cached keys and values, ended when every word of the batch has ended."""

    def __init__(
        self, model: Recogniser, device: torch.device, charset: str, image_size: tuple[int, int] = (32, 128)
    ) -> None:
        self.model, self.device, self.charset, self.image_size = model, device, charset, image_size
        self.codec = EosPadUnkCodec(charset, model.max_len)

    def read(self, images: Tensor, attention: bool = False) -> list[Prediction]:
        """uint8 [B, H, W, 3] on the model's device -> one prediction each; `attention` adds maps [T, h, w] in [0,
        1]."""
        reading = self.model.read(normalise(images), attention=attention)
        best = reading.scores.max(-1).values.cpu().numpy()
        found = decode(self.codec, reading.ids.cpu().numpy(), best)
        if not attention or reading.maps is None:
            return found
        maps = self.grids(reading.maps).cpu().numpy()
        return [
            Prediction(one.text, one.confidence, one.char_confidences, maps[row, : len(one.text)])
            for row, one in enumerate(found)
        ]

    def grids(self, maps: Tensor) -> Tensor:
        """Maps over tokens `[B, T, K]` as `[B, T, h, w]`, each scaled to a largest value of 1."""
        rows, columns = self.model.encoder.grid
        if isinstance(self.model, RecModel) and self.model.one_row:
            rows = 1
        return (maps / maps.amax(-1, keepdim=True)).unflatten(-1, (rows, columns)).float()

    def export_module(self) -> tuple[nn.Module, Callable[[Sequence[np.ndarray]], list[Prediction]]]:
        """The reader with its full number of greedy steps, and the decoding of its two outputs."""
        return GreedyModule(self.model), lambda arrays: decode(self.codec, arrays[0], arrays[1])


def decode(codec: EosPadUnkCodec, ids: np.ndarray, probabilities: np.ndarray) -> list[Prediction]:
    """Ids and maximum probabilities [B, T] -> predictions by the published decoding."""
    return [Prediction(one.text, one.confidence, one.char_confidences) for one in codec.decode(ids, probabilities)]


class GreedyModule(nn.Module):
    """uint8 [B, H, W, 3] -> (ids int64 [B, T], probabilities [B, T]), always all T steps."""

    def __init__(self, model: Recogniser) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        decoding = self.model.decoding(self.model.memory(normalise(images)), growing=True)
        begin = torch.zeros_like(images[:, 0, 0, 0], dtype=torch.long) + self.model.classes
        ids, logits = greedy_decode(decoding.step, begin, self.model.max_len)
        return ids, F.softmax(logits, -1).amax(-1)
