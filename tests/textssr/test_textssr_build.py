"""The small networks that stand where Stable Diffusion's weights are absent."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d

from projects.textssr.model.build import SIZES, VAES, build_vae


@pytest.mark.parametrize("size", SIZES)
def test_small_vaes_begin_as_a_blur_in_colours(size) -> None:
    torch.manual_seed(0)
    vae, side = build_vae(size).eval(), VAES[size][2]
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4) * 2 - 1, size=(side, side))
    with torch.no_grad():
        posterior = vae.encode(picture).latent_dist
        latents = posterior.mean[0, :3]
        painted = vae.decode(posterior.mean).sample[0]
    means = avg_pool2d(picture, side // latents.shape[-1])[0]
    assert posterior.std.max() < 0.05
    for seen, given in ((latents, means), (painted, picture[0])):
        for colour in range(3):
            both = torch.stack([seen[colour].flatten(), given[colour].flatten()])
            assert torch.corrcoef(both)[0, 1] > 0.99
