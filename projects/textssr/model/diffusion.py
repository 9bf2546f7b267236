"""The training loss of the character-aware diffusion model and its sampling loop (TextSSR, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from projects.textssr.model.unet import TextUNet, predictor_input

Draw = Callable[[str, Tensor], Tensor]
"""(name of the draw, a tensor of its shape and device) -> standard normal values."""


def normal(generator: torch.Generator | None = None) -> Draw:
    """Standard normal draws, from `generator` where given (it stays on its own device), else from the global one."""

    def draw(name: str, like: Tensor) -> Tensor:
        device = generator.device if generator is not None else like.device
        return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)

    return draw


@dataclass
class Condition:
    """What the picture and the wanted word give: pixels in [-1, 1], glyph in [0.5, 1], planes in [0, 1], mask 1 = keep.

    Shapes `[B, 3, R, R]` for `masked` and `glyph` (None where their latents are known), `[B, 25, 64, 64]` for
    `planes`, `[B, 1, R, R]` for `mask`.
    """

    masked: Tensor | None
    glyph: Tensor | None
    planes: Tensor
    mask: Tensor

    def small_mask(self, latents: Tensor) -> Tensor:
        """The mask `[B, 1, h, w]` at the size of `latents`: with SD's factor 8, the pixel at (8 i, 8 j)."""
        return F.interpolate(self.mask, latents.shape[-2:], mode="nearest").to(latents.dtype)


@dataclass
class Posterior:
    """Mean and log-variance `[B, 4, h, w]` of an encoded picture: worth caching, a sample costs only a draw."""

    mean: Tensor
    logvar: Tensor

    def sample(self, draw: Draw, name: str, scale: float) -> Tensor:
        deviation = torch.exp(0.5 * self.logvar.clamp(-30, 20))
        return (self.mean + deviation * draw(name, self.mean)) * scale  # scale brings latents to unit variance

    def where(self, chosen: Tensor, other: Posterior) -> Posterior:
        """This posterior where `chosen` `[B, 1, 1, 1]` is true, `other` elsewhere."""
        mean, logvar = self.mean.to(other.mean), self.logvar.to(other.logvar)
        return Posterior(torch.where(chosen, mean, other.mean), torch.where(chosen, logvar, other.logvar))

    def split(self, size: int) -> list[Posterior]:
        """Parts of `size` pictures each, of a batch that was encoded in one call."""
        return [Posterior(*parts) for parts in zip(self.mean.split(size), self.logvar.split(size))]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Posterior:
    """Posterior of `[B, 3, R, R]` pictures."""
    latent = vae.encode(images.to(vae.dtype)).latent_dist
    return Posterior(latent.mean.float(), latent.logvar.float())


PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""Values of a scheduler's `prediction_type`; the published code knows the first two."""


def target_of(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet learns to predict: the noise, the velocity sqrt(abar) noise - sqrt(1 - abar) latents, or the
    latents themselves (`sample`)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise UserError(f"scheduler: prediction_type: Unknown prediction type {kind} (use {', '.join(PREDICTIONS)})")


@dataclass
class StepOutput:
    """Loss and what it was made of: the UNet's input `[B, 13, h, w]`, its prediction and the target `[B, 4, h, w]`."""

    loss: Tensor
    sample: Tensor
    prediction: Tensor
    target: Tensor

    @torch.no_grad()
    def by_place(self, condition: Condition) -> dict[str, Tensor]:
        """The mean squared error inside the text region and outside it, for logs."""
        error = (self.prediction.float() - self.target.float()).square().mean(1, keepdim=True)
        outside = condition.small_mask(error)
        inside = 1 - outside
        return {
            "loss_inside": (error * inside).sum() / inside.sum().clamp_min(1),
            "loss_outside": (error * outside).sum() / outside.sum().clamp_min(1),
        }


@dataclass(frozen=True)
class Weighting:
    """How the squared error is weighted; the defaults are the published plain mean.

    region: weight of the text region against 1 outside. min_snr_gamma: gamma of min-SNR weighting (Hang et al., ICCV
    2023, for v-prediction min(SNR, gamma) / (SNR + 1)), None: none.
    """

    region: float = 1.0
    min_snr_gamma: float | None = None

    def mean(
        self, scheduler: DDPMScheduler, prediction: Tensor, target: Tensor, timesteps: Tensor, mask: Tensor
    ) -> Tensor:
        """The loss of predictions `[B, 4, h, w]` with the small mask `[B, 1, h, w]` (1 outside the region)."""
        if self == PLAIN:
            return F.mse_loss(prediction, target)
        error = (prediction - target).square()
        weight = self.region + (1 - self.region) * mask.to(error.dtype)  # `region` inside, 1 outside, [B, 1, h, w]
        each = (error * weight).mean((1, 2, 3)) / weight.mean((1, 2, 3))
        if self.min_snr_gamma is not None:
            abar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
            snr = abar / (1 - abar)  # signal to noise of x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise
            over = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[scheduler.config.prediction_type]
            each = each * snr.clamp_max(self.min_snr_gamma) / over
        return each.mean()


PLAIN = Weighting()


def diffusion_loss(
    unet: TextUNet,
    scheduler: DDPMScheduler,
    image: Posterior,
    masked: Posterior,
    glyph: Posterior,
    condition: Condition,
    scale: float,
    draw: Draw,
    timesteps: Tensor | None = None,
    weighting: Weighting = PLAIN,
) -> StepOutput:
    """The noise loss of a batch: E || UNet(u_t, t, c) - v ||^2, the mean over the whole crop, as `weighting` says.

    u_t = [z_t, z_masked, z_glyph, mask] of 13 channels, with z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps; c are the
    tokens of the character planes; v is the target that the scheduler asks for (`target_of`).

    Args:
        image, masked, glyph: posteriors `[B, 4, h, w]` of the crop, the crop without its word, and the word glyph.
        scale: the VAE's scaling factor; z = scale times a sample of the posterior.
        timesteps: int64 `[B]`; without them they are drawn uniformly.

    Draws, in order: eps_pixel, noise, eps_masked, eps_glyph, then the timesteps.
    """
    latents = image.sample(draw, "eps_pixel", scale)  # z_0, [B, 4, h, w]
    noise = draw("noise", latents)
    masked_latents = masked.sample(draw, "eps_masked", scale)
    glyph_latents = glyph.sample(draw, "eps_glyph", scale)
    if timesteps is None:
        steps = scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)  # z_t
    mask = condition.small_mask(latents)
    sample = predictor_input(noisy, masked_latents, glyph_latents, mask)
    prediction = unet(sample, timesteps, condition.planes).sample  # diffusers' field: its output, not a draw
    target = target_of(scheduler, latents, noise, timesteps)
    loss = weighting.mean(scheduler, prediction.float(), target.float(), timesteps, mask)
    return StepOutput(loss, sample, prediction, target)


@torch.no_grad()
def paint(
    unet: TextUNet,
    vae: AutoencoderKL,
    scheduler: DDPMScheduler | DPMSolverMultistepScheduler,
    condition: Condition,
    steps: int,
    draw: Draw,
    guidance: float = 1.0,
) -> Tensor:
    """Sample crops `[B, 3, R, R]` in [-1, 1] (not clamped) by ancestral denoising.

    With a scheduler other than DDPM's its own steps are taken. `guidance` other than 1 is classifier-free guidance (Ho
    and Salimans 2022): away from the prediction for no text, with blank planes and a blank word glyph; for UNets
    trained with condition dropout.
    Models in half precision compute in it; the latents between the steps stay float32.

    Draws, in order: `glyph`, `masked`, `init`, then `step` once per step (the last one has practically no weight).
    """
    scale = vae.config.scaling_factor
    scheduler.set_timesteps(steps, device=condition.mask.device)
    glyph = encode(vae, condition.glyph).sample(draw, "glyph", scale)
    masked = encode(vae, condition.masked).sample(draw, "masked", scale)
    latents = draw("init", masked) * scheduler.init_noise_sigma
    mask = condition.small_mask(latents)
    context = unet.ttf_net(condition.planes.to(unet.dtype))  # the planes do not change from step to step
    if guidance != 1:
        no_planes = unet.ttf_net(torch.ones_like(condition.planes).to(unet.dtype))
        no_glyph = encode(vae, torch.ones_like(condition.glyph)).mean * scale
    for timestep in scheduler.timesteps:
        sample = predictor_input(scheduler.scale_model_input(latents, timestep), masked, glyph, mask)
        prediction = unet(sample.to(unet.dtype), timestep, context).sample.to(latents.dtype)
        if guidance != 1:  # a second pass, without a text
            sample = predictor_input(scheduler.scale_model_input(latents, timestep), masked, no_glyph, mask)
            without = unet(sample.to(unet.dtype), timestep, no_planes).sample.to(latents.dtype)
            prediction = without + guidance * (prediction - without)
        if isinstance(scheduler, DDPMScheduler):
            latents = ancestral_step(scheduler, prediction, timestep, latents, draw)
        else:
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    return vae.decode(latents.to(vae.dtype) / scale).sample


def ancestral_step(
    scheduler: DDPMScheduler, prediction: Tensor, timestep: Tensor, latents: Tensor, draw: Draw
) -> Tensor:
    """x_{t-1} of DDPM (Ho et al. 2020, eq. 6) with the noise of `draw`, for the scheduler's own spacing of steps."""
    if timestep == 0:
        return scheduler.step(prediction, timestep, latents).prev_sample
    # the scheduler draws from the global generator only; its mean is taken and the noise added here
    previous = scheduler.previous_timestep(timestep)
    abar = scheduler.alphas_cumprod[timestep]
    abar_before = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.one
    alpha = abar / abar_before
    # x_0 as the prediction implies it
    if scheduler.config.prediction_type == "v_prediction":
        original = abar.sqrt() * latents - (1 - abar).sqrt() * prediction
    elif scheduler.config.prediction_type == "sample":
        original = prediction
    else:
        original = (latents - (1 - abar).sqrt() * prediction) / abar.sqrt()
    if scheduler.config.clip_sample:
        original = original.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    # mean of q(x_{t-1} | x_t, x_0)
    mean = (abar_before.sqrt() * (1 - alpha) * original + alpha.sqrt() * (1 - abar_before) * latents) / (1 - abar)
    variance = scheduler._get_variance(int(timestep))
    return mean + variance.sqrt() * draw("step", latents)


def to_pixels(images: Tensor, *, clamp: bool = True) -> Tensor:
    """[-1, 1] -> 0..255 float; `clamp=False` keeps the published overflow."""
    pixels = (images / 2 + 0.5) * 255
    return pixels.clamp(0, 255) if clamp else pixels
