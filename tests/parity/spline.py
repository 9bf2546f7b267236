"""The published spline from the pictures that it made.

A picture hides an error along y: a grid unit has a quarter of the pixels of one along x, and the noise of x drowns it.
But both axes of the grid move by combinations of the spline's K + 3 functions only, so the differences of a picture's
values from float64 say how far the golden's grid is from ours, axis by axis. On correct code it is at most 1.2 times as
far as our own float32; one fiducial moved by 1e-4 along either axis makes it 9 to 15 times.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from common.models.tps import Tps, sample
from tests.parity.noise import EPSILON, FACTOR, as_published, float64, moved

AXES = ("x", "y")


class Displacements:
    """How far the grid behind a stored picture is from the float64 one: least squares per image.

    Args:
        grid: float64 sampling grid `[B, H, W, 2]`; images: float64 `[B, C, H, W]`.
        functions: the spline's functions at each pixel, `[H * W, K + 3]`.
        step: every `step`-th value of the flattened picture is stored.
    """

    def __init__(self, images: Tensor, grid: Tensor, functions: Tensor, step: int) -> None:
        grid = grid.detach().requires_grad_()
        pictures = sample(images, grid)
        _, channels, height, width = pictures.shape
        slopes = [
            torch.autograd.grad(pictures[:, channel].sum(), grid, retain_graph=True)[0] for channel in range(channels)
        ]
        slopes = torch.stack(slopes, 1).reshape(-1, 2)[::step].numpy()  # of each stored value, along x and y
        self.exact = pictures.detach().flatten()[::step].numpy()
        self.basis = torch.linalg.qr(functions)[0].numpy()
        stored = np.arange(0, pictures.numel(), step)
        self.image = stored // (channels * height * width)
        rows = self.basis[stored % (height * width)]
        self.design = np.hstack([slopes[:, :1] * rows, slopes[:, 1:] * rows])

    def of(self, stored: np.ndarray) -> np.ndarray:
        """Largest displacement along x and y."""
        off, largest = np.asarray(stored, np.float64).ravel() - self.exact, np.zeros(2)
        for image in np.unique(self.image):
            own = self.image == image
            weights = np.linalg.lstsq(self.design[own], off[own], rcond=None)[0]
            fields = [self.basis @ part for part in np.split(weights, 2)]
            largest = np.maximum(largest, [np.abs(field).max() for field in fields])
        return largest


def check_displacement(model: nn.Module, images: Tensor, stored: np.ndarray, step: int, runs: int) -> None:
    """The grid behind a stored rectified picture is as near to our float64 grid as our float32 ones."""
    double = copy.deepcopy(model).double().eval()
    tps = next(module for module in double.modules() if isinstance(module, Tps))
    with float64():
        found = Displacements(images.double(), tps.grid(images.double()), tps.GridGenerator.P_hat, step)
    single = as_published(copy.deepcopy(model)).eval()
    tps, noise = next(module for module in single.modules() if isinstance(module, Tps)), np.full(2, 10 * EPSILON)
    for run in range(runs):
        with torch.no_grad():
            noise = np.maximum(noise, found.of(tps(moved(images, run)).flatten()[::step].numpy()))
    for axis, off, allowed in zip(AXES, found.of(stored), FACTOR * noise):
        assert off <= allowed, f"rectified picture: the grid is off by {off:.3g} along {axis}, allowed {allowed:.3g}"
