"""TextSSR's networks, scheduler, training steps and sampling against the published code."""

from __future__ import annotations

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch.nn import functional as F

from projects.textssr.model.diffusion import (
    Condition,
    ancestral_step,
    diffusion_loss,
    encode,
    paint,
    target_of,
    to_pixels,
)
from projects.textssr.model.unet import TextUNet
from projects.textssr.run import build_optimizer
from tests.parity import harness
from tests.parity import textssr_recipes as recipes
from tests.parity.noise import Cap, Measured, Outcome, gradient_norms, measure, without_dropout
from tests.parity.recipes import stride_of


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
    if not case.has_manifest:
        return
    assert {name: list(tensor.shape) for name, tensor in module.state_dict().items()} == case.manifest
    assert sum(p.numel() for p in module.parameters()) == case.meta["parameters"]
    assert len(case.manifest) == case.meta.get("entries", len(case.manifest))


def close(actual: torch.Tensor, case: harness.Case, name: str) -> None:
    """With a stored array, whole or strided, where no network stands between: a few float32 operations."""
    stored = case.arrays[name]
    part = stride_of(actual.shape, stored.shape)
    harness.assert_close(actual.detach()[part], stored, relative_to_absmax=1e-5, what=name)


def check(measured: Measured, case: harness.Case, *names: str) -> None:
    for name in names:
        stored = case.arrays[name]
        measured.check(name, stored, part=stride_of(measured.exact.tensors[name].shape, stored.shape))
        if isinstance(case.meta.get(name), dict) and "absmax" in case.meta[name]:
            measured.check_stats(name, case.meta[name])


def test_unet(unet_case, filler) -> None:
    meta, timesteps = unet_case.meta, torch.tensor(unet_case.meta["inputs"]["timestep"])
    unet = TextUNet(**meta["constructor"])
    check_names(unet, unet_case)
    filler.fill_module(unet)
    assert unet.config.in_channels == meta["config_in_channels"]
    assert list(unet.conv_in.weight.shape) == meta.get("conv_in", list(unet.conv_in.weight.shape))
    sample = recipes.batch(filler, meta["inputs"]["sample"], max(2, timesteps.numel()))
    planes = recipes.planes(filler, meta["inputs"]["ttf"], len(sample))

    def compute(unet: TextUNet, sample: torch.Tensor, planes: torch.Tensor) -> Outcome:
        output = unet(sample, timesteps, planes).sample
        made = Outcome({"tokens": unet.ttf_net(planes), "output": output})
        if "target" in meta["inputs"]:
            loss = F.mse_loss(output, recipes.batch(filler, meta["inputs"]["target"]).to(output.dtype))
            made.scalars["mse_loss"], made.gradients["loss"] = loss, gradient_norms(unet, loss)
        return made

    measured = measure(compute, without_dropout(unet), {"sample": sample, "planes": planes})
    check(measured, unet_case, *[name for name in ("tokens", "output") if name in unet_case.arrays])
    for name in measured.exact.scalars:
        measured.check_scalar(name, meta[name])
    check_gradients(measured, meta)


def check_gradients(measured: Measured, meta: dict) -> None:
    if "grad_l2" in meta:
        spared = dict.fromkeys(meta.get("no_grad", []))
        measured.check_gradients("loss", meta["grad_l2"] | spared)
    if "grad_l2_total" in meta:
        norms = [norm for norm in measured.exact.gradients["loss"].values() if norm is not None]
        # the original sums 78 million squares in float32, which costs it 1e-4; each norm was compared above
        assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(meta["grad_l2_total"], rel=1e-3)


def test_vae(vae_case, filler) -> None:
    meta = vae_case.meta
    vae = AutoencoderKL(**meta["constructor"])
    check_names(vae, vae_case)
    filler.fill_module(vae)
    assert vae.config.scaling_factor == meta["scaling_factor"]
    assert vae.config.force_upcast == meta.get("force_upcast", True)
    made = {name: meta["inputs"][name] for name in ("pixels", "glyph", "z") if name in meta["inputs"]}
    inputs = {name: recipes.batch(filler, recipe) for name, recipe in made.items()}

    def compute(vae: AutoencoderKL, pixels: torch.Tensor, **more: torch.Tensor) -> Outcome:
        posterior, reconstruction = encode(vae, pixels), vae(pixels).sample
        loss = F.mse_loss(reconstruction, pixels)
        tensors = {
            "mean": posterior.mean, "logvar": posterior.logvar, "std": torch.exp(posterior.logvar / 2),
            "reconstruction": reconstruction,
        }  # fmt: skip
        if "glyph" in more:
            tensors["glyph_mean"] = encode(vae, more["glyph"]).mean
        if "z" in more:
            with torch.no_grad():
                tensors["decoded_z"] = vae.decode(more["z"] / meta["scaling_factor"]).sample
        return Outcome(tensors, {"vae_loss": loss}, {"loss": gradient_norms(vae, loss)})

    measured = measure(compute, vae, inputs)
    assert not vae_case.arrays.keys() - measured.exact.tensors.keys()
    check(measured, vae_case, *vae_case.arrays)
    if "vae_loss" in meta:
        measured.check_scalar("vae_loss", meta["vae_loss"])
    check_gradients(measured, meta)


def test_scheduler(scheduler_case, filler) -> None:
    meta = scheduler_case.meta
    scheduler = DDPMScheduler(**meta["scheduler"])
    for name, value in meta.get("defaults_in_effect", {}).items():
        if not name.startswith("_"):
            assert scheduler.config[name] == value, name
    assert scheduler.init_noise_sigma == meta.get("init_noise_sigma", 1.0)
    for step, value in meta["alphas_cumprod"].items():
        assert float(scheduler.alphas_cumprod[int(step)]) == pytest.approx(value, abs=1e-6)
    for count, expected in meta.get("timesteps", {}).items():
        scheduler.set_timesteps(int(count))
        assert scheduler.timesteps.tolist() == expected
    start, noise = recipes.batch(filler, meta["inputs"]["x0"]), recipes.batch(filler, meta["inputs"]["noise"])
    steps = torch.tensor(meta["inputs"]["timesteps"])
    close(scheduler.add_noise(start, noise, steps), scheduler_case, "noisy")
    if scheduler.config.prediction_type == "v_prediction":
        close(target_of(scheduler, start, noise, steps), scheduler_case, "velocity")
    stored = [name for name in scheduler_case.arrays if name.startswith("prev_")]
    if stored:
        scheduler.set_timesteps(int(re.search(r"(\d+) inference steps", meta["inputs"]["step"]).group(1)))
    for name in stored:
        step = re.fullmatch(r"prev_(\d+)(?:_x0)?", name).group(1)
        own = recipes.batch(filler, meta["inputs"]["step"].replace("<t>", step))
        if name.endswith("_x0"):
            close(predicted_original(scheduler, noise, torch.tensor(int(step)), start), scheduler_case, name)
        else:
            after = ancestral_step(scheduler, noise, torch.tensor(int(step)), start, lambda *_, own=own: own)
            close(after, scheduler_case, name)


def predicted_original(scheduler: DDPMScheduler, output, timestep, sample) -> torch.Tensor:
    """The scheduler's x_0 of a step: what `ancestral_step` mixes with the sample."""
    return scheduler.step(output, timestep, sample, generator=torch.Generator()).pred_original_sample


def configured(settings: dict, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run whose published settings are `settings`."""
    defaults = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": True}
    assert all(settings.get(name, value) == value for name, value in defaults.items()), settings
    config = SimpleNamespace(
        learning_rate=settings["lr"], adam_beta1=settings["betas"][0], adam_beta2=settings["betas"][1],
        adam_weight_decay=settings["weight_decay"], adam_epsilon=settings["eps"], scale_lr=False, use_8bit_adam=False,
        gradient_accumulation_steps=1, train_batch_size=1,
    )  # fmt: skip
    return build_optimizer(config, model, 1)


def test_step(step_case, goldens, filler) -> None:
    meta, models = step_case.meta, step_case.meta.get("models", "")
    items = len(meta["inputs"].get("timesteps", (0, 1)))
    image, vae = recipes.batch(filler, meta["inputs"]["image"], items), recipes.tiny_vae(goldens, models)
    if meta.get("calls") or "target" in step_case.arrays:  # a step of the UNet draws noise, one of the VAE nothing
        model, loss_of = recipes.tiny_unet(goldens, models), diffusion_step(step_case, goldens, filler, vae)
    else:
        model, loss_of = vae.train(), reconstruction_step

    def compute(model: torch.nn.Module, image: torch.Tensor) -> Outcome:
        tensors, loss = loss_of(model, image)
        made = Outcome(tensors, {"loss": loss}, {"loss": gradient_norms(model, loss)})
        optimizer = configured(meta["optimizer"], model)
        assert len(optimizer.param_groups) == 1
        clip = meta.get("max_grad_norm", meta.get("clip_grad", 1.0))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        made.scalars["grad_norm_before_clip"] = norm
        optimizer.step()
        state = model.state_dict()
        if after := [state[name].double() for name in meta.get("after_step_sum_and_l2", ())]:
            made.tensors["norms after"] = torch.stack([value.norm() for value in after])
            made.tensors["sums after"] = torch.stack([value.sum() / value.numel() ** 0.5 for value in after])
        return made

    measured = measure(compute, without_dropout(model), {"image": image})
    check(measured, step_case, *[name for name in step_case.arrays if name in measured.exact.tensors])
    for name in ("loss", "grad_norm_before_clip"):
        if name in meta:
            measured.check_scalar(name, meta[name])
    check_gradients(measured, meta)
    golden = meta.get("after_step_sum_and_l2")
    if golden is None:
        return
    measured.check_parameters("norms after", {name: norm for name, (_, norm) in golden.items()}, model)
    sizes = [model.get_parameter(name).numel() for name in golden]
    # AdamW's first step is lr in every element, whose sign float32 does not know where the gradient vanishes
    sums = [total / size**0.5 for (total, _), size in zip(golden.values(), sizes)]
    measured.check("sums after", sums, cap=1e-3)


def reconstruction_step(vae: AutoencoderKL, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    prediction = vae(image).sample
    return {"pred": prediction}, F.mse_loss(prediction, image)


def diffusion_step(case, goldens, filler, vae):
    """A function (unet, image) -> intermediate values and loss, with the case's noise."""
    inputs, single = case.meta["inputs"], vae
    double, scheduler = copy.deepcopy(vae).double(), recipes.scheduler_of(goldens, case.meta)

    def loss_of(unet: TextUNet, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        drawn, vae = [], double if image.dtype == torch.float64 else single
        mask = recipes.masks(inputs["mask"], image.shape[-1], len(image)).to(image.dtype)
        glyph = recipes.batch(filler, inputs["glyph"], len(image)).to(image.dtype)
        planes = recipes.planes(filler, inputs["ttf"], len(image)).to(image.dtype)
        condition = Condition(image * mask, glyph, planes, mask)

        def draw(name: str, like: torch.Tensor) -> torch.Tensor:
            drawn.append(name)
            return recipes.normals(inputs["eps"], name).to(like.dtype)

        posteriors = encode(vae, torch.cat([image, condition.masked, glyph])).split(len(image))
        timesteps = torch.tensor(inputs["timesteps"])
        told = case.meta.get("unet_input", {})
        assert told.get("timestep", inputs["timesteps"]) == inputs["timesteps"]
        assert told.get("encoder_hidden_states", list(planes.shape)) == list(planes.shape)
        output = diffusion_loss(unet, scheduler, *posteriors, condition, vae.config.scaling_factor, draw, timesteps)
        assert drawn == case.meta.get("calls", drawn)
        return {"unet_sample": output.sample, "pred": output.prediction, "target": output.target}, output.loss

    return loss_of


def test_inference(inference_case, goldens, filler) -> None:
    meta, arrays, inputs = inference_case.meta, inference_case.arrays, inference_case.meta["inputs"]
    models = meta.get("models", "")
    image, vae = recipes.batch(filler, inputs["image"]), recipes.tiny_vae(goldens, models)
    vaes = {torch.float32: vae, torch.float64: copy.deepcopy(vae).double()}
    scheduler = recipes.scheduler_of(goldens, meta)
    seed = int(re.search(r"manual_seed\((\d+)\)", meta["rng"]).group(1))
    posteriors = recipes.posterior_draws(seed, arrays["init"].shape)
    for name, drawn in zip(("posterior_glyph", "posterior_masked"), posteriors):
        # logarithm and cosine of the normal draws differ by processor in their last bits
        harness.assert_close(drawn, arrays.get(name, drawn), absolute=1e-5, what=name)

    def compute(unet: TextUNet, image: torch.Tensor) -> Outcome:
        calls, noises, drawn = [], iter(arrays["step_noise"]), iter(posteriors)
        mask = recipes.masks(inputs["mask"], image.shape[-1], len(image)).to(image.dtype)
        planes = recipes.planes(filler, inputs["ttf"], len(image)).to(image.dtype)
        glyph = recipes.batch(filler, inputs["glyph"]).to(image.dtype)
        condition = Condition(image * mask, glyph, planes, mask)

        def draw(name: str, like: torch.Tensor) -> torch.Tensor:
            calls.append({"glyph": "posterior", "masked": "posterior"}.get(name, name))
            if name == "init":
                return torch.from_numpy(arrays["init"]).to(like.dtype)
            return (torch.from_numpy(next(noises)) if name == "step" else next(drawn)).to(like.dtype)

        seen = []
        handle = unet.register_forward_hook(lambda _, args, output: seen.append((args[0], output.sample)))
        made = paint(unet, vaes[image.dtype], scheduler, condition, meta["steps"], draw)
        handle.remove()
        assert calls == meta["draws"]
        assert scheduler.timesteps.tolist() == meta.get("timesteps", scheduler.timesteps.tolist())
        pixels = to_pixels(made, clamp=False)
        overflow = {"below_zero": (pixels < 0).sum(), "above_255": (pixels > 255).sum()}
        tensors = {
            "first_sample": seen[0][0], "first_pred": seen[0][1], "last_pred": seen[-1][1],
            "image": pixels, "image_vae_00": made[0, 0], "last_sample_latent": seen[-1][0][:, :4],
        }  # fmt: skip
        return Outcome(tensors, overflow)

    measured = measure(compute, recipes.tiny_unet(goldens, models).eval(), {"image": image})
    check(measured, inference_case, *[name for name in measured.exact.tensors if name in arrays])
    for what in ("min", "max"):
        if what in meta.get("image", {}):
            off = abs(getattr(measured.exact.tensors["image"], what)() - meta["image"][what])
            assert off <= measured.limit("image", Cap.PLAIN), f"image: {what} off by {off:.3g}"
    if "mean" in meta.get("image", {}):
        measured.check_stats("image", {what: meta["image"][what] for what in ("mean", "std")})
    for name in ("below_zero", "above_255"):
        if name in meta:
            measured.check_scalar(name, meta[name], floor=2)


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
