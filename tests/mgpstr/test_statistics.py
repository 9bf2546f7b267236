"""What goldens do not see, against the specification: starting weights of the models, draws of the augmentation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from common.augment import recipes
from common.augment.randaugment import GROUPS, OPERATIONS
from projects.mgpstr.model.build import build_model

SMALL = ["mgp_str_tiny_patch4_3_32_128", "char_str_base_patch4_3_32_128", "ACDS-STR-Small"]


def normal(std: float, cut: float = np.inf) -> tuple[float, float]:
    """(standard deviation, largest value possible) of a normal distribution."""
    return std, cut


def uniform(bound: float) -> tuple[float, float]:
    return bound / 3**0.5, bound


def torch_default(weight: torch.Tensor) -> tuple[float, float]:
    """Linear and convolutional weights as torch starts them: uniform within 1 / sqrt(fan in)."""
    return uniform(weight[0].numel() ** -0.5)


def expected(name: str, parameter: torch.Tensor, module: nn.Module) -> tuple[float, float] | float:
    """The value, or (deviation, bound) of the distribution, that section 5.3 or 5.4 of the specification gives."""
    if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        return float(name.endswith("weight"))
    if name.endswith(("conv_class", "gated")):
        return 0.0
    if name.endswith(("cls_token", "pos_embed")):
        return normal(0.02, 2.0)
    if "patch_embed" in name or (isinstance(module, nn.Linear) and "_head." in name):  # torch's defaults
        return uniform(module.weight[0].numel() ** -0.5)
    if isinstance(module, nn.Linear):
        return 0.0 if name.endswith("bias") else normal(0.02, 2.0)
    if "cnnBackbone" in name:
        return normal((2 / (parameter.shape[2] * parameter.shape[3] * parameter.shape[0])) ** 0.5)
    return torch_default(parameter)


@pytest.mark.parametrize("name", SMALL)
def test_initial_statistics(name: str) -> None:
    torch.manual_seed(0)
    method = name if name.startswith("ACDS") else "char-str" if name.startswith("char") else "mgp-str"
    model = build_model(method, name, depth=6 if method == name else 2)  # all blocks of a model start alike
    modules, checked = dict(model.named_modules()), Counter()
    for full, parameter in model.named_parameters():
        wanted = expected(full, parameter, modules[full.rpartition(".")[0]])
        if isinstance(wanted, float):
            assert (parameter == wanted).all(), full
            checked["constant"] += 1
            continue
        deviation, bound = wanted
        values = parameter.detach().double()
        assert values.abs().max() <= bound * (1 + 1e-6), full
        # torch's truncated normal gives the bound itself once in 2^24 draws; one such value moves the deviation
        values = values[values.abs() < 10 * deviation]
        error = 5 * deviation / (2 * values.numel()) ** 0.5  # five standard errors of a deviation
        assert abs(values.std().item() - deviation) < max(error, 4e-3 * deviation) or values.numel() < 30, full
        assert abs(values.mean().item()) < 5 * deviation / values.numel() ** 0.5, full
        checked["drawn"] += 1
    assert checked["constant"] > 20 and checked["drawn"] > 12


# operation: (what to look at in the drawn parameters, ranges of magnitude 0, 1, 2), all uniform
DRAWS = {
    "Posterize": (lambda p: p[0], [(1, 2), (3, 4), (6, 7)]),
    "Solarize": (lambda p: p[0], [(64, 127), (128, 191), (192, 255)]),
    "Sharpness": (lambda p: p[0], [(0.1, 0.7), (0.7, 1.3), (1.3, 1.9)]),
    "Color": (lambda p: p[0], [(0.1, 0.7), (0.7, 1.3), (1.3, 1.9)]),
    "GaussianNoise": (lambda p: p[0].std(), [(0.08, 0.11), (0.1, 0.13), (0.12, 0.15)]),
    "ShotNoise": (lambda p: p[1], [(13, 20), (8, 15), (3, 10)]),
    "ImpulseNoise": (lambda p: p[0].mean() + p[1].mean(), [(0.03, 0.07), (0.07, 0.11), (0.11, 0.15)]),
    "SpeckleNoise": (lambda p: p[0].std(), [(0.15, 0.2), (0.2, 0.25), (0.25, 0.3)]),
    "MotionBlur": (lambda p: p[1], [(-45, 45)] * 3),
    "Rain": (lambda p: len(p[0]) + 1, [(50, 69), (70, 89), (90, 109)]),
    "Shadow": (lambda p: p[0], [(64, 95), (96, 127), (128, 159)]),
    "Curve": (lambda p: p[1] / 224, [(1.1, 1.2), (0.95, 1.05), (0.8, 0.9)]),
    "Rotate": (lambda p: abs(p[0]), [(0, 10), (10, 20), (20, 30)]),
}
FIXED = {
    "Contrast": [0.4, 0.3, 0.2], "Brightness": [0.1, 0.2, 0.3], "JpegCompression": [25, 18, 15],
    "Pixelate": [0.6, 0.5, 0.4], "DefocusBlur": [2, 3, 4], "GlassBlur": [0.7, 0.75, 0.8], "Fog": [1.5, 2, 2.5],
    "Equalize": [False] * 3, "AutoContrast": [False] * 3,
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_draws_of_an_operation(name: str) -> None:
    """Three hundred draws fill the range of the specification evenly, and never leave it."""
    look, ranges = DRAWS[name]
    image, rng = np.full((32, 128, 3), 128, np.uint8), np.random.default_rng(1)
    for magnitude, (low, high) in enumerate(ranges):
        values = np.array([look(OPERATIONS[name].sample(rng, magnitude, image)) for _ in range(300)], float)
        slack = 0.05 * (high - low) + (0.006 if "Noise" in name else 0)  # noise is measured on one image
        assert values.min() >= low - slack and values.max() <= high + slack, (values.min(), values.max())
        inside = (values - low) / (high - low)
        assert abs(inside.mean() - 0.5) < 5 * 0.5 / 300**0.5 and 0.2 < inside.std() < 0.55


@pytest.mark.parametrize("name", FIXED)
def test_strengths_that_are_not_drawn(name: str) -> None:
    image = np.full((32, 128, 3), 128, np.uint8)
    drawn = [OPERATIONS[name].sample(np.random.default_rng(2), magnitude, image)[0] for magnitude in range(3)]
    assert drawn == FIXED[name]


def test_gaussian_blur_of_magnitude_2_is_a_random_one_as_published() -> None:
    image, rng = np.zeros((32, 128, 3), np.uint8), np.random.default_rng(3)
    sigmas = Counter(OPERATIONS["GaussianBlur"].sample(rng, 2, image)[0] for _ in range(300))
    assert set(sigmas) == {0.5, 1, 2} and min(sigmas.values()) > 60


@pytest.mark.parametrize(("supervised", "count"), [(False, 8), (True, 6)])
def test_what_rand_augment_draws(supervised: bool, count: int) -> None:
    """Three different groups of eight (box supervision: of six that move no pixel), operation and magnitude evenly."""
    groups = recipes.STILL_GROUPS if supervised else recipes.ALL_GROUPS
    augment, rng = recipes.rand_augment(groups=groups), np.random.default_rng(4)
    home = {operation.name: group for group, operations in GROUPS.items() for operation in operations}
    drawn, magnitudes, images = Counter(), Counter(), 3000
    for _ in range(images):
        plan = list(augment.plan(rng))
        assert len({home[operation.name] for operation, _ in plan}) == len(plan) == 3
        drawn.update(operation.name for operation, _ in plan)
        magnitudes.update(magnitude for _, magnitude in plan)
    assert len(augment.groups) == count and not supervised & bool({"Pixelate", "Rotate", "Distort"} & set(drawn))
    assert all(abs(magnitudes[m] / (3 * images) - 1 / 3) < 0.03 for m in range(3))
    for group in augment.groups:
        for operation in group:
            share = 3 / count / len(group)
            assert abs(drawn[operation.name] / images - share) < 5 * (share / images) ** 0.5, operation.name


def test_half_of_the_images_stay_as_they_are() -> None:
    augment, rng = recipes.rand_augment(augs_mag=0), np.random.default_rng(5)
    image = np.random.default_rng(6).integers(0, 256, (32, 128, 3), dtype=np.uint8)
    same = sum(augment(image, rng) is image for _ in range(400))
    assert 0.4 < same / 400 < 0.6
