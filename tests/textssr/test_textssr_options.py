"""Additional ways to train and to sample: off they are the published ones, on they do what their names say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch.nn import functional as F

from common.reproduce import recipe
from projects.textssr.flags import parse_infer
from projects.textssr.metrics import frechet_distance
from projects.textssr.model.build import SCHEDULER, build_unet, build_vae
from projects.textssr.model.diffusion import PLAIN, Condition, StepOutput, Weighting, encode
from projects.textssr.model.diffusion import paint as sample_crops
from projects.textssr.painting import sample_draws
from projects.textssr.train_diff import DiffusionLoss


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return build_unet("tiny").eval(), build_vae("tiny").eval(), DDPMScheduler(**SCHEDULER)


def predictions() -> tuple[torch.Tensor, ...]:
    """Prediction, target, timesteps, and a mask that keeps all but a quarter."""
    draw = torch.Generator().manual_seed(1)
    prediction, target = torch.randn(2, 2, 4, 8, 8, generator=draw)
    mask = torch.ones(2, 1, 8, 8)
    mask[:, :, :4, :4] = 0
    return prediction, target, torch.tensor([3, 700]), mask


def test_the_loss_is_the_published_mean_unless_weighted(models) -> None:
    prediction, target, timesteps, mask = predictions()
    plain = F.mse_loss(prediction, target)
    assert torch.equal(PLAIN.mean(models[2], prediction, target, timesteps, mask), plain)
    error = (prediction - target).square()
    weighted = Weighting(region=4.0).mean(models[2], prediction, target, timesteps, mask)
    inside, outside = error[:, :, :4, :4].sum(), error.sum() - error[:, :, :4, :4].sum()
    assert torch.allclose(weighted, (4 * inside + outside) / (2 * 4 * (4 * 16 + 48)))
    abar = models[2].alphas_cumprod[timesteps]
    snr = abar / (1 - abar)
    expected = (error.mean((1, 2, 3)) * snr.clamp_max(5) / (snr + 1)).mean()
    assert torch.allclose(Weighting(min_snr_gamma=5).mean(models[2], prediction, target, timesteps, mask), expected)


def test_the_loss_by_place(models) -> None:
    prediction, target, _, mask = predictions()
    condition = Condition(None, None, torch.ones(2, 25, 64, 64), mask)
    made = StepOutput(F.mse_loss(prediction, target), prediction, prediction, target).by_place(condition)
    error = (prediction - target).square()
    assert torch.allclose(made["loss_inside"], error[:, :, :4, :4].mean())
    assert torch.allclose(0.25 * made["loss_inside"] + 0.75 * made["loss_outside"], error.mean())


@pytest.mark.parametrize("cached", [False, True])
def test_dropped_conditions_are_blank_planes_and_a_blank_glyph(models, cached: bool) -> None:
    unet, vae, scheduler = models
    seen, glyphs = [], []

    class Watched(torch.nn.Module):
        def forward(self, sample, timesteps, planes):
            seen.append(planes)
            glyphs.append(sample[:, 8:12])
            return unet(sample, timesteps, planes)

    batch = {"pixel_values": torch.zeros(8, 3, 64, 64), "masks": torch.ones(8, 1, 64, 64)}
    batch |= {"masked_images": torch.zeros(8, 3, 64, 64), "glyphs": torch.full((8, 3, 64, 64), 0.5)}
    if cached:
        moments = [encode(vae, batch[name]) for name in ("pixel_values", "masked_images", "glyphs")]
        batch["moments"] = torch.stack([torch.cat([one.mean, one.logvar], 1) for one in moments], 1)
    batch["ttf_images"] = torch.zeros(8, 25, 64, 64)
    for dropout in (0.0, 0.5):
        DiffusionLoss(vae, scheduler, dropout=dropout)(Watched(), batch, torch.Generator().manual_seed(0))
    blank = [(planes == 1).all((1, 2, 3)) if hasattr(planes, "all") else None for planes in seen]
    assert not blank[0].any() and 0 < int(blank[1].sum()) < 8
    assert all(float(planes.unique().numel()) == 1 for planes in seen[1])
    white = encode(vae, torch.ones(1, 3, 64, 64)).mean
    distance = (glyphs[1] - white).abs().mean((1, 2, 3))  # the posteriors are narrow
    assert distance[blank[1]].max() < distance[~blank[1]].min() / 2, distance


def paint(models, scheduler, steps: int, guidance: float = 1.0) -> np.ndarray:
    """A crop of the tiny model."""
    unet, vae, _ = models
    planes = torch.ones(1, 25, 64, 64)
    planes[:, 0, 20:40, 20:40] = 0
    mask = torch.ones(1, 1, 64, 64)
    mask[:, :, 20:40] = 0
    condition = Condition(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), planes, mask)
    with torch.inference_mode():
        return sample_crops(unet, vae, scheduler, condition, steps, sample_draws([0]), guidance).numpy()


def test_guidance_and_the_solver_change_what_is_painted(models) -> None:
    ddpm = models[2]
    plain = paint(models, ddpm, 3)
    assert np.array_equal(plain, paint(models, ddpm, 3, 1.0))
    assert not np.array_equal(plain, paint(models, ddpm, 3, 3.0))
    solver = DPMSolverMultistepScheduler.from_config(ddpm.config)
    first, second = paint(models, solver, 4), paint(models, solver, 4)
    assert np.isfinite(first).all() and np.array_equal(first, second) and not np.array_equal(first, plain)


def test_frechet_distance() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0, 1, (400, 6))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, first + 2) == pytest.approx(24, rel=1e-6)
    assert frechet_distance(first, 3 * first) > 4 * 6 * 0.8  # deviations 1 and 3: (3 - 1)^2 for each of six


def test_the_paper_scale_paints_and_judges_the_three_benchmark_sets(tmp_path) -> None:
    values = {"data": str(tmp_path), "out": "out", "python": "python", "strlab": "strlab", "device": "cpu"}
    steps = {step.name: step for step in recipe.load("textssr").scale("paper").steps}
    words = {name: recipe.command_line(step.run, values | {"scale": "paper"}) for name, step in steps.items()}
    assert [name for name in steps if name.startswith("paint ")] == ["paint ic13", "paint ic15", "paint shopsign"]
    for name in ("ic13", "ic15", "shopsign"):
        (tmp_path / "benchmark" / name / "images").mkdir(parents=True)
        options = parse_infer(words[f"paint {name}"][2:], "")
        assert options.data == tmp_path / "benchmark" / name / "test.json"
        assert options.images == tmp_path / "benchmark" / name / "images"
        assert str(options.unet) == "out/step2/checkpoint-25000/unet" and options.steps == 20
    judged = words["judge"][2:]
    assert judged[:5] == ["out/paint_ic13", "out/paint_ic15", "out/paint_shopsign", "--reader", "rapidocr"]
