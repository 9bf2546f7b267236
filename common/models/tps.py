"""Thin-plate-spline rectification of word images (Shi et al., "Robust Scene Text Recognition with Automatic
Rectification", 2016).

A small network predicts where K fiducial points of the straightened word lie in the input (K/2 along the upper and K/2
along the lower edge); the smooth warp through them is sampled bilinearly. State-dict names are those of the published
recognisers with a TPS stage (`LocalizationNetwork.*`, `GridGenerator.*`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def edge_points(count: int, top: tuple[float, float], bottom: tuple[float, float]) -> torch.Tensor:
    """`count` points [count, 2] as (x, y): half on each edge, x over [-1, 1], y running between the given ends."""
    x = torch.linspace(-1.0, 1.0, count // 2, dtype=torch.float64)
    rows = [torch.stack([x, torch.linspace(*ends, count // 2, dtype=torch.float64)], dim=1) for ends in (top, bottom)]
    return torch.cat(rows)


def base_fiducials(count: int) -> torch.Tensor:
    """Fiducials of the rectified image: its upper and lower edges (y = -1 and y = 1)."""
    return edge_points(count, (-1.0, -1.0), (1.0, 1.0))


def initial_fiducials(count: int) -> torch.Tensor:
    """Where the published networks start to look: a top edge from y = 0 to -1 and a bottom edge from y = 1 to 0."""
    return edge_points(count, (0.0, -1.0), (1.0, 0.0))


def _radial(distance: torch.Tensor, epsilon: float) -> torch.Tensor:
    return distance.square() * torch.log(distance + epsilon)


def spline_constants(size: tuple[int, int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inverse of Delta [K+3, K+3], lifted pixel centres P_hat [H*W, K+3]) in float64 (section 3.1.2 of the paper)."""
    height, width = size
    points = base_fiducials(count)  # C of the paper, [K, 2]
    distance = torch.cdist(points, points)
    # R with r^2 ln r; the diagonal is set to 1 so that its logarithm gives the limit 0
    kernel = _radial(distance.fill_diagonal_(1.0), 0.0)
    one = torch.ones(count, 1, dtype=torch.float64)
    upper = torch.cat([one, points, kernel], dim=1)
    lower = torch.cat([torch.zeros(3, 3, dtype=torch.float64), torch.cat([points.T, one.T])], dim=1)
    inverse = torch.linalg.inv(torch.cat([upper, lower]))
    # pixel centres as (x, y) in [-1, 1], row by row
    y = (torch.arange(-height, height, 2, dtype=torch.float64) + 1) / height
    x = (torch.arange(-width, width, 2, dtype=torch.float64) + 1) / width
    pixels = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    lifted = _radial(torch.cdist(pixels, points, compute_mode="donot_use_mm_for_euclid_dist"), 1e-6)
    return inverse, torch.cat([torch.ones(len(pixels), 1, dtype=torch.float64), pixels, lifted], dim=1)


class LocalizationNetwork(nn.Module):
    """Image [B, C, H, W] -> fiducials [B, K, 2] in [-1, 1] coordinates of the input."""

    def __init__(self, fiducials: int, in_channels: int, widths: Sequence[int], start: torch.Tensor) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            layers += [
                nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            layers.append(nn.MaxPool2d(2, 2) if index < len(widths) - 1 else nn.AdaptiveAvgPool2d(1))
            in_channels = width
        hidden = widths[-1] // 2
        self.conv = nn.Sequential(*layers)
        self.localization_fc1 = nn.Sequential(nn.Linear(widths[-1], hidden), nn.ReLU(inplace=True))
        self.localization_fc2 = nn.Linear(hidden, 2 * fiducials)
        with torch.no_grad():  # at first every image gets the same fiducials
            self.localization_fc2.weight.zero_()
            self.localization_fc2.bias.copy_(start.flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.localization_fc1(self.conv(images).flatten(1))
        points = self.localization_fc2(hidden)
        return points.reshape(points.shape[0], -1, 2)  # not unflatten: exported graphs keep its batch size


class GridGenerator(nn.Module):
    """Fiducials [B, K, 2] -> sampling grid [B, H, W, 2]: P' = P_hat Delta^-1 [C'; 0].

    The published models keep the constants in the state dict only in some settings. With `persistent=False` they are
    not kept here, and a checkpoint that has them loads strictly all the same. `product` is the type in which
    Delta^-1 C' is computed: the published float32 moves the grid by up to 1.4e-5, which is rounding alone.
    """

    product = torch.float64

    def __init__(self, size: tuple[int, int], fiducials: int, persistent: bool) -> None:
        super().__init__()
        inverse, lifted = spline_constants(size, fiducials)
        self.size = size
        self.register_buffer("inv_delta_C", inverse.float(), persistent=persistent)
        self.register_buffer("P_hat", lifted.float(), persistent=persistent)
        self.register_load_state_dict_pre_hook(self._accept_constants)

    @staticmethod
    def _accept_constants(module: nn.Module, state: dict, prefix: str, *_) -> None:
        for name in ("inv_delta_C", "P_hat"):
            if name in module._non_persistent_buffers_set:
                state.pop(prefix + name, None)

    def forward(self, fiducials: torch.Tensor) -> torch.Tensor:
        # Two products, as published: folding the constants into one moves the grid by about 1e-5, and noise shows it.
        # The first one cancels (condition about 980), so it is made in float64 where the device has it.
        wide = self.product if fiducials.device.type != "mps" else torch.float32
        # the last three rows of [C'; 0] are zero, so the last three columns of Delta^-1 are not needed
        coefficients = self.inv_delta_C[:, : fiducials.shape[1]].to(wide) @ fiducials.to(wide)  # [B, K + 3, 2]
        coefficients = coefficients.to(fiducials.dtype)
        return (self.P_hat @ coefficients).reshape(fiducials.shape[0], *self.size, 2)


class Tps(nn.Module):
    """Rectify images and whatever lies over them.

    `size` (H, W) of the output, equal to the input's here; `fiducials` K, even; `widths` of the localisation
    convolutions; `identity_start` begins with an undistorted grid instead of the published slanted one; `persistent`
    keeps the spline constants in the state dict.
    """

    def __init__(
        self,
        size: tuple[int, int],
        fiducials: int = 20,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        identity_start: bool = False,
        persistent: bool = False,
    ) -> None:
        super().__init__()
        start = base_fiducials(fiducials) if identity_start else initial_fiducials(fiducials)
        self.LocalizationNetwork = LocalizationNetwork(fiducials, in_channels, widths, start)
        self.GridGenerator = GridGenerator(size, fiducials, persistent)

    def grid(self, images: torch.Tensor) -> torch.Tensor:
        """Sampling grid [B, H, W, 2] for a batch [B, C, H, W]."""
        return self.GridGenerator(self.LocalizationNetwork(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return sample(images, self.grid(images))


def sample(planes: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Bilinear sampling as the published TPS does it (border values outside, corners aligned).

    Coordinates that are not finite give NaN everywhere, so that the loss reports them: torch's kernel for the CPU reads
    outside its memory there and ends the process.
    """
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if grid.device.type == "cpu" and not traced and not bool(torch.isfinite(grid).all()):
        return planes.new_full((*planes.shape[:2], *grid.shape[1:3]), float("nan"))
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)
