"""TextSSR's networks, scheduler, training steps and sampling against the published code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch.nn import functional as F

from projects.textssr.diffusion import Condition, ancestral_step, diffusion_loss, encode, paint, target_of, to_pixels
from projects.textssr.training import build_optimizer
from projects.textssr.unet import TextUNet
from tests.parity import harness
from tests.parity import textssr_recipes as recipes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kinds = ("unet", "vae", "scheduler", "step", "inference")
    recipes.parametrize(metafunc, {f"{name}_case": (name, "*.npz") for name in kinds})
    recipes.parametrize(metafunc, {"full_size_case": ("full_size", "*.json")})


@pytest.fixture(scope="module")
def goldens(pytestconfig):
    return pytestconfig.getoption("--goldens")


@pytest.fixture(scope="module")
def filler(goldens):
    return harness.fill(goldens)


@pytest.fixture(scope="module")
def unet_case(request):
    return harness.load(request.param)


vae_case = scheduler_case = step_case = inference_case = full_size_case = unet_case


def check_names(module: torch.nn.Module, case: harness.Case) -> None:
    assert {name: list(tensor.shape) for name, tensor in module.state_dict().items()} == case.manifest
    assert sum(p.numel() for p in module.parameters()) == case.meta["parameters"]


def close(actual: torch.Tensor, case: harness.Case, name: str, absolute: float = 1e-4) -> None:
    """With a stored array, whole or strided in its last two axes (or, for tokens, the last two), and its statistics."""
    expected = case.arrays[name]
    actual = actual.detach()
    for axis in range(actual.ndim):
        step = -(-actual.shape[axis] // expected.shape[axis])
        actual = actual.index_select(axis, torch.arange(0, actual.shape[axis], step))
    harness.assert_close(actual, expected, absolute=absolute, what=name)


def test_unet(unet_case, filler) -> None:
    meta = unet_case.meta
    unet = TextUNet(**meta["constructor"])
    check_names(unet, unet_case)
    filler.fill_module(unet)
    assert unet.config.in_channels == meta["config_in_channels"]
    sample = recipes.batch(filler, meta["inputs"]["sample"])
    planes = recipes.planes(filler, meta["inputs"]["ttf"], len(sample))
    close(unet.ttf_net(planes), unet_case, "tokens")
    output = unet(sample, torch.tensor(meta["inputs"]["timestep"]), planes).sample
    close(output, unet_case, "output")
    loss = F.mse_loss(output, recipes.batch(filler, meta["inputs"]["target"]))
    assert float(loss.detach()) == pytest.approx(meta["mse_loss"], abs=1e-4)
    loss.backward()
    recipes.check_gradients(unet, meta["grad_l2"])


def test_vae(vae_case, filler) -> None:
    meta = vae_case.meta
    vae = AutoencoderKL(**meta["constructor"])
    check_names(vae, vae_case)
    filler.fill_module(vae)
    assert vae.config.scaling_factor == meta["scaling_factor"]
    pixels = recipes.batch(filler, meta["inputs"]["pixels"])
    posterior = encode(vae, pixels)
    close(posterior.mean, vae_case, "mean")
    close(posterior.logvar, vae_case, "logvar")
    close(torch.exp(posterior.logvar / 2), vae_case, "std")
    close(encode(vae, recipes.batch(filler, meta["inputs"]["glyph"])).mean, vae_case, "glyph_mean")
    with torch.no_grad():
        latents = recipes.batch(filler, meta["inputs"]["z"]) / meta["scaling_factor"]
        close(vae.decode(latents).sample, vae_case, "decoded_z")
    reconstruction = vae(pixels).sample
    close(reconstruction, vae_case, "reconstruction")
    loss = F.mse_loss(reconstruction, pixels)
    assert float(loss.detach()) == pytest.approx(meta["vae_loss"], abs=1e-4)
    loss.backward()
    recipes.check_gradients(vae, meta["grad_l2"])


def test_scheduler(scheduler_case, filler) -> None:
    meta = scheduler_case.meta
    scheduler = DDPMScheduler(**meta["scheduler"])
    for name, value in meta["defaults_in_effect"].items():
        if not name.startswith("_"):
            assert scheduler.config[name] == value, name
    assert scheduler.init_noise_sigma == meta["init_noise_sigma"]
    for step, value in meta["alphas_cumprod"].items():
        assert float(scheduler.alphas_cumprod[int(step)]) == pytest.approx(value, abs=1e-6)
    for count, expected in meta["timesteps"].items():
        scheduler.set_timesteps(int(count))
        assert scheduler.timesteps.tolist() == expected
    start, noise = recipes.batch(filler, meta["inputs"]["x0"]), recipes.batch(filler, meta["inputs"]["noise"])
    steps = torch.tensor(meta["inputs"]["timesteps"])
    close(scheduler.add_noise(start, noise, steps), scheduler_case, "noisy")
    if scheduler.config.prediction_type == "v_prediction":
        close(target_of(scheduler, start, noise, steps), scheduler_case, "velocity")
    scheduler.set_timesteps(20)
    for name in [name for name in scheduler_case.arrays if name.startswith("prev_") and not name.endswith("_x0")]:
        step = name.removeprefix("prev_")
        own = recipes.batch(filler, meta["inputs"]["step"].replace("<t>", step))
        after = ancestral_step(scheduler, noise, torch.tensor(int(step)), start, lambda *_, own=own: own)
        close(after, scheduler_case, name)


def configured(settings: dict, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run whose published settings are `settings`."""
    from types import SimpleNamespace

    config = SimpleNamespace(
        learning_rate=settings["lr"], adam_beta1=settings["betas"][0], adam_beta2=settings["betas"][1],
        adam_weight_decay=settings["weight_decay"], adam_epsilon=settings["eps"], scale_lr=False, use_8bit_adam=False,
        gradient_accumulation_steps=1, train_batch_size=2,
    )  # fmt: skip
    return build_optimizer(config, model, 1)


def test_step(step_case, goldens, filler) -> None:
    meta, inputs = step_case.meta, step_case.meta["inputs"]
    image, vae = recipes.batch(filler, inputs["image"]), recipes.tiny_vae(goldens)
    if "unet_sample" in step_case.arrays:
        model, loss = diffusion_step(step_case, goldens, filler, image, vae)
    else:
        model = vae.train()
        prediction = vae(image).sample
        close(prediction, step_case, "pred")
        loss = F.mse_loss(prediction, image)
    assert float(loss.detach()) == pytest.approx(meta["loss"], abs=1e-4)
    loss.backward()
    recipes.check_gradients(model, meta["grad_l2"])
    optimizer = configured(meta["optimizer"], model)
    assert len(optimizer.param_groups) == 1
    assert float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)) == pytest.approx(
        meta["grad_norm_before_clip"], rel=1e-3
    )
    optimizer.step()
    state = model.state_dict()
    for name, (total, norm) in meta["after_step_sum_and_l2"].items():
        values = state[name].double()
        assert float(values.norm()) == pytest.approx(norm, rel=1e-4), name
        assert float(values.sum()) == pytest.approx(total, abs=1e-4 * max(values.numel() ** 0.5, abs(total))), name


def diffusion_step(case, goldens, filler, image, vae):
    """Model and loss of one step, its intermediate values compared on the way."""
    inputs, drawn = case.meta["inputs"], []
    mask = recipes.masks(inputs["mask"], image.shape[-1], len(image))
    glyph = recipes.batch(filler, inputs["glyph"])
    condition = Condition(image * mask, glyph, recipes.planes(filler, inputs["ttf"], len(image)), mask)
    scheduler = DDPMScheduler(**recipes.shared(goldens, "ddpm_sd21").meta["scheduler"])
    unet = recipes.tiny_unet(goldens)

    def draw(name: str, like: torch.Tensor) -> torch.Tensor:
        drawn.append(name)
        return recipes.normals(inputs["eps"], name)

    posteriors = encode(vae, torch.cat([image, condition.masked, glyph])).split(len(image))
    output = diffusion_loss(
        unet, scheduler, *posteriors, condition, vae.config.scaling_factor, draw, torch.tensor(inputs["timesteps"])
    )
    assert drawn == case.meta["calls"]
    for name, value in (("unet_sample", output.sample), ("pred", output.prediction), ("target", output.target)):
        close(value, case, name)
    return unet, output.loss


def test_inference(inference_case, goldens, filler) -> None:
    meta, arrays, inputs = inference_case.meta, inference_case.arrays, inference_case.meta["inputs"]
    image = recipes.batch(filler, inputs["image"])
    mask = recipes.masks(inputs["mask"], image.shape[-1], len(image))
    planes = recipes.planes(filler, inputs["ttf"], len(image))
    condition = Condition(image * mask, recipes.batch(filler, inputs["glyph"]), planes, mask)
    scheduler = DDPMScheduler(**recipes.shared(goldens, "ddpm_sd21").meta["scheduler"])
    unet, vae, calls = recipes.tiny_unet(goldens).eval(), recipes.tiny_vae(goldens), []
    noises = iter(arrays["step_noise"])
    torch.manual_seed(int(meta["rng"].split("manual_seed(")[1].split(")")[0]))

    def draw(name: str, like: torch.Tensor) -> torch.Tensor:
        calls.append({"glyph": "posterior", "masked": "posterior"}.get(name, name))
        if name == "init":
            return torch.from_numpy(arrays["init"])
        return torch.from_numpy(next(noises)) if name == "step" else torch.randn(like.shape)

    seen = []
    handle = unet.register_forward_hook(lambda _, args, output: seen.append((args[0], output.sample)))
    made = paint(unet, vae, scheduler, condition, meta["steps"], draw)
    handle.remove()
    assert calls == meta["draws"]
    assert scheduler.timesteps.tolist() == meta["timesteps"]
    close(seen[0][0], inference_case, "first_sample")
    close(seen[0][1], inference_case, "first_pred", 1e-3)
    close(seen[-1][1], inference_case, "last_pred", 1e-3)
    harness.assert_close(to_pixels(made, clamp=False)[:, :, ::2, ::2], arrays["image"], absolute=1e-2, what="image")
    pixels = to_pixels(made, clamp=False)
    assert (int((pixels < 0).sum()), int((pixels > 255).sum())) == pytest.approx(
        (meta["below_zero"], meta["above_255"]), abs=2
    )
    assert np.abs(made[0, 0].numpy() - arrays["image_vae_00"]).max() < 1e-3


def test_full_size(full_size_case) -> None:
    for name, expected in full_size_case.meta.items():
        build = TextUNet if name.startswith("unet") else AutoencoderKL
        with torch.device("meta"):
            model = build(**expected["config"])
        manifest = json.loads((full_size_case.path.parent / f"{name}.manifest.json").read_text())
        state = model.state_dict()
        assert {key: list(tensor.shape) for key, tensor in state.items()} == manifest
        assert len(state) == expected["entries"]
        counts: dict[str, int] = {}
        for key, parameter in model.named_parameters():
            prefix = key.split(".")[0]
            counts[prefix] = counts.get(prefix, 0) + parameter.numel()
        assert counts == expected["by_prefix"]
        assert sum(counts.values()) == expected["parameters"]
        for key, value in expected.get("saved_config", {}).items():
            if not key.startswith("_"):
                found = model.config[key]
                assert (list(found) if isinstance(found, tuple) else found) == value, key
