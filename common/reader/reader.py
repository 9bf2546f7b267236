"""The compact reader as the shared tools use it: images in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.data.decode import resize_bicubic
from common.errors import UserError
from common.infer.recognizer import Prediction
from common.models.compact import WIDTHS, CompactReader
from common.models.images import to_float_nchw
from common.reader.looks import second_look
from common.text.charset import CHARSET_94
from common.text.codecs import CtcCodec
from common.train.checkpoint import load
from common.train.state import is_state

HALF = (0.5, 0.5, 0.5)
COUNTER = "num_batches_tracked"


def build(charset: str = CHARSET_94, widths: Sequence[int] = WIDTHS, depth: int = 3, heads: int = 6) -> CompactReader:
    """The model with random weights; class 0 is the blank, the characters of `charset` follow in order."""
    return CompactReader(len(charset) + 1, tuple(widths), depth, heads)


def open_reader(checkpoint: Path, options: Mapping[str, Any], device: torch.device) -> CtcReader:
    """The registry's `open`. Takes a plain state dict, or a training state, of which the averaged weights are read.

    Raises `UserError` for a file that does not fit.
    """
    charset = options.get("charset", CHARSET_94)
    model = build(**{**options, "charset": charset})
    load_weights(model, checkpoint, "name its model with --model")
    return CtcReader(model.to(device).eval(), charset, device)


def load_weights(model: CompactReader, file: Path, advice: str) -> None:
    """Put the weights of a shipped file, a `best.pth` or a training state (the averaged ones) into the model.

    Raises `UserError` for a file that does not fit, which ends with `advice`.
    """
    state = load(file)
    if is_state(state):
        average = state["parts"].get("average", {})
        state = {name.removeprefix("model."): tensor for name, tensor in average.items()} or state["model"]
    elif isinstance(state, Mapping):
        state = state.get("average", state.get("model", state))
    try:
        head = state.get("head.weight")
        if head is not None and len(head) != len(model.head.weight):
            classes = f"its charset has {len(head) - 1} characters and not {len(model.head.weight) - 1}"
            raise RuntimeError(classes)
        # fp16 files are widened: figures are stated for fp32. The counters of batch norm are not stored in them.
        stored = {name: tensor.float() for name, tensor in state.items() if not name.endswith(COUNTER)}
        missing, unknown = model.load_state_dict(stored, strict=False)
        if unknown or not all(name.endswith(COUNTER) for name in missing):
            raise RuntimeError(f"missing {missing[:3]}, unknown {unknown[:3]}")
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise UserError(f"{file}: does not fit strlab/compact ({reason}); {advice}") from None


class CtcReader:
    """Reads in one pass: the likeliest class of every column, repeats merged, blanks removed.

    A character's confidence is the highest probability within its run of columns; a word's is their product. Words that
    are read with little confidence are looked at again (`common.reader.looks`) while `second_look` is True. Crops more
    than twice as tall as wide are turned by a quarter, as the words of a sign that hangs down are read.
    """

    fit_rule = (
        "bicubic resize with antialiasing, aspect ratio ignored; crops more than twice as tall as wide are turned by a "
        "quarter to the left first"
    )

    def __init__(self, model: CompactReader, charset: str, device: torch.device) -> None:
        self.model, self.charset, self.device, self.second_look = model, charset, device, True
        self.codec, self.image_size = CtcCodec(charset), (32, 128)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Crop uint8 `[h, w, 3]` -> uint8 `[32, 128, 3]`."""
        if image.shape[0] > 2 * image.shape[1]:
            image = np.ascontiguousarray(np.rot90(image))
        return resize_bicubic(image, self.image_size)

    def read(self, images: Tensor, attention: bool = False) -> list[Prediction]:
        """uint8 `[B, 32, 128, 3]` on the device -> one prediction each; `attention` is that of the look that won."""
        return self.settle(images, partial(self._read_once, attention=attention))

    def settle(self, images: Tensor, read: Callable[[Tensor], list[Prediction]]) -> list[Prediction]:
        """Read a batch with `read`, and what is unsure once more where this reader does so."""
        words = read(images)
        return second_look(images, words, read) if self.second_look else words

    def _read_once(self, images: Tensor, attention: bool = False) -> list[Prediction]:
        probabilities, ids = self.model(to_float_nchw(images, HALF, HALF)).float().softmax(-1).max(-1)
        rows = ids.cpu().numpy()
        words = self.decode([rows, probabilities.cpu().numpy()])
        return [replace(word, attention=self._columns(row)) for word, row in zip(words, rows)] if attention else words

    def decode(self, arrays: Sequence[np.ndarray]) -> list[Prediction]:
        """Ids and probabilities `[B, 32]` -> predictions."""
        found = []
        for word, ids, probabilities in zip(self.codec.decode(arrays[0]), arrays[0], arrays[1]):
            runs = [run for run in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids)) + 1) if ids[run[0]]]
            confidences = tuple(float(probabilities[run].max()) for run in runs)
            found.append(Prediction(word.text, float(np.prod(confidences)) if confidences else 0.0, confidences))
        return found

    @staticmethod
    def _columns(ids: np.ndarray) -> np.ndarray:
        """Where each character was read: `[T, 1, 32]`, 1 in the columns of its run."""
        runs = [run for run in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(ids)) + 1) if ids[run[0]]]
        maps = np.zeros((len(runs), 1, len(ids)), np.float32)
        for row, run in enumerate(runs):
            maps[row, 0, run] = 1
        return maps

    def export_module(self) -> tuple[nn.Module, Callable[[Sequence[np.ndarray]], list[Prediction]]]:
        """uint8 `[B, 32, 128, 3]` -> (ids, probabilities) `[B, 32]`, and their decoding."""
        return _IdsAndProbabilities(self.model), self.decode


class _IdsAndProbabilities(nn.Module):
    def __init__(self, model: CompactReader) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, ids = self.model(to_float_nchw(images, HALF, HALF)).softmax(-1).max(-1)
        return ids, probabilities
