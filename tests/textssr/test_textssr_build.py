"""The small networks that stand where Stable Diffusion's weights are absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from projects.textssr.fonts import default_font
from projects.textssr.model.build import SIZES, VAES, build_unet, build_vae
from projects.textssr.model.glyphs import GlyphRenderer
from projects.textssr.model.unet import GlyphEncoder


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


@pytest.mark.parametrize("words", [["read", "on"], ["a b"], [" "], ["abcdefghijklmnopqrstuvwxyz"]])
def test_blank_planes_are_skipped_with_equal_results(words: list[str]) -> None:
    """Tokens and gradients of the small glyph encoder; the published size convolves every plane."""
    torch.manual_seed(0)
    encoder, renderer = build_unet("tiny").ttf_net, GlyphRenderer(default_font())
    planes = torch.from_numpy(np.stack([renderer.planes(word) for word in words])).float() / 255
    assert encoder.patch_embed.used_only and not GlyphEncoder(depth=1).patch_embed.used_only
    direction, results = torch.randn(len(words), 65, 128), []
    for used_only in (False, True):
        encoder.patch_embed.used_only = used_only
        encoder.zero_grad()
        tokens = encoder(planes)
        (tokens * direction).sum().backward()
        results.append((tokens.detach(), encoder.patch_embed.proj.weight.grad.clone()))
    for all_planes, used in zip(*results):
        assert (all_planes - used).abs().max() < 1e-4 * all_planes.abs().max()
