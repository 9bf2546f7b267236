"""A reader that needs no training: it tells how bright an image is, with one letter for each third."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common import registry
from common.infer.recognizer import Prediction
from common.registry import ModelRow

LETTERS = "abc"
COLOURS = {"a": 10, "b": 120, "c": 240}


class Brightness(nn.Module):
    """uint8 [B, H, W, 3] -> scores [B, 3] of the letters."""

    def __init__(self, sharpness: float = 20.0) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([0.05, 0.5, 0.95]))
        self.sharpness = sharpness

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.float().div(255).mean(dim=(1, 2, 3))
        return -self.sharpness * (mean[:, None] - self.centres).abs()


class BrightnessReader:
    """The project's side of the toy."""

    image_size, charset = (8, 16), LETTERS

    def __init__(self, model: Brightness, device: torch.device) -> None:
        self.model, self.device = model.to(device).eval(), device
        self.batches: list[int] = []

    def read(self, images: torch.Tensor, attention: bool = False) -> list[Prediction]:
        assert images.dtype == torch.uint8 and images.shape[1:] == (8, 16, 3)
        self.batches.append(len(images))
        return self.decode([self.model(images).numpy()], attention)

    def decode(self, outputs: list[np.ndarray], attention: bool = False) -> list[Prediction]:
        scores = np.exp(outputs[0]) / np.exp(outputs[0]).sum(axis=1, keepdims=True)
        maps = np.random.default_rng(0).random((1, 2, 4)) if attention else None
        return [Prediction(LETTERS[row.argmax()], float(row.max()), [float(row.max())], maps) for row in scores]

    def export_module(self) -> tuple[nn.Module, object]:
        return self.model, self.decode


def open_toy(checkpoint: Path, options: dict, device: torch.device) -> BrightnessReader:
    model = Brightness(**options)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return BrightnessReader(model, device)


ROW = ModelRow("toy/Brightness", "recogniser", Brightness, (8, 16), charset=LETTERS, open=open_toy)


def crop(letter: str, size: tuple[int, int] = (30, 12)) -> bytes:
    """PNG bytes of a flat image that the toy reads as `letter`."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (COLOURS[letter],) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def save_toy(path: Path) -> Path:
    """A checkpoint of the toy."""
    torch.save(Brightness().state_dict(), path)
    return path


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the toy the only registered model."""
    monkeypatch.setattr(registry, "rows", lambda: (ROW,))
