"""The augmentation library: laws of its draws, masks that follow their images, the same result from the same
generator.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from common.augment import abinet, fast, photometric, recipes, views
from common.augment.operation import PRESETS
from common.augment.randaugment import GROUPS, OPERATIONS
from common.augment.rng import asymmetric, normals, symmetric
from common.augment.sheet import crops
from common.cli import main
from common.errors import UserError

IMAGE = crops(2)[1]
MOVING = {"Pixelate", "Curve", "Distort", "Stretch", "Rotate", "Perspective", "Shrink"}


def _smooth() -> np.ndarray:
    """A picture without fine detail, in which a shift of one pixel shows little and a wrong map shows much."""
    ys, xs = np.mgrid[:32, :128].astype(np.float32)
    waves = (np.sin(xs / 9), np.cos(ys / 5 + xs / 20), np.sin(xs / 15 - ys / 6))
    return (np.stack(waves, axis=-1) * 60 + 150).astype(np.uint8)


RECIPES = {
    "abinet": recipes.abinet(3),
    "abinet resampled": recipes.abinet(3, resample=True),
    "original": recipes.rand_augment(intact_prob=0),
    "straug": recipes.rand_augment("straug", intact_prob=0),
    "ssm": recipes.rand_augment("ssm", recipes.SSM_GROUPS, intact_prob=0),
    "fast": recipes.rand_augment("siga", intact_prob=0, fast=True),
    "selective": recipes.selective(list(GROUPS), intact_prob=0),
    "contrastive": views.ContrastiveView(),
}


@pytest.mark.parametrize("name", RECIPES)
def test_same_generator_same_image(name: str) -> None:
    augment = RECIPES[name]
    for seed in range(12):
        first, second = (augment(IMAGE.copy(), np.random.default_rng([7, seed])) for _ in range(2))
        assert first.dtype == np.uint8 and first.shape[2] == 3
        assert np.array_equal(first, second)


@pytest.mark.parametrize("name", RECIPES)
def test_the_input_is_left_alone(name: str) -> None:
    image = IMAGE.copy()
    image.flags.writeable = False
    mask = (image[..., 0] < 100).astype(np.uint8)
    mask.flags.writeable = False
    for seed in range(12):
        out, moved = RECIPES[name](image, np.random.default_rng(seed), mask)
        assert out.shape[:2] == moved.shape or name == "contrastive"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str, preset: str) -> None:
    operation = OPERATIONS[name]
    mask = (IMAGE[..., 0] < 100).astype(np.uint8)
    for magnitude in (0, 1, 2, -1, 3):
        rng = np.random.default_rng(magnitude + 5)
        out, moved = operation(IMAGE, rng, magnitude, preset=preset, mask=mask)
        assert out.shape == IMAGE.shape and out.dtype == np.uint8
        assert moved.shape == mask.shape and set(np.unique(moved)) <= {0, 1}
        assert name in MOVING or np.array_equal(moved, mask)
    never = operation(IMAGE, np.random.default_rng(0), 1, probability=0.0)
    assert never is IMAGE


@pytest.mark.parametrize("size", [(16, 64), (48, 160), (32, 100), (64, 600)])
def test_other_sizes(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for name, operation in OPERATIONS.items():
        assert operation(image, np.random.default_rng(1), 2).shape == image.shape, name
        quick = fast.apply_plan(iter([(operation, 2)]), image, np.random.default_rng(1), None, "original")
        assert quick.shape == image.shape, name


@pytest.mark.parametrize("name", sorted(MOVING))
def test_mask_follows_the_image(name: str) -> None:
    """White text on black, the mask is the text: after the operation the mask is still where the image is bright."""
    mask = np.zeros((32, 128), np.uint8)
    mask[8:24, 20:108] = 1
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    for seed in range(20):
        out, moved = OPERATIONS[name](image, np.random.default_rng(seed), seed % 3, mask=mask)
        assert ((out[..., 0] >= 128) == moved).mean() > 0.97
        out, moved = fast.apply_plan(
            iter([(OPERATIONS[name], seed % 3)]), image, np.random.default_rng(seed), mask, "original"
        )
        assert ((out[..., 0] >= 128) == moved).mean() > 0.96


def test_abinet_mask_follows_the_image() -> None:
    mask = np.zeros((32, 100), np.uint8)
    mask[8:24, 20:80] = 1
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    for kind in ("rotation", "affine", "perspective"):
        for seed in range(15):
            out, moved = abinet.move(image, mask.astype(np.float64), kind, np.random.default_rng(seed))
            assert out.shape[:2] == moved.shape
            assert ((out[..., 0] >= 128) == (moved >= 0.5)).mean() > 0.97


@pytest.mark.parametrize("name", sorted(fast.MAPS.keys() & OPERATIONS.keys()))
def test_fast_warp_shows_the_same_picture(name: str) -> None:
    image, operation = _smooth(), OPERATIONS[name]
    for seed in range(12):
        slow = operation(image, np.random.default_rng(seed), seed % 3).astype(int)
        quick = fast.apply_plan(
            iter([(operation, seed % 3)]), image, np.random.default_rng(seed), None, "original"
        ).astype(int)
        # The black outside has hard edges, which the published detours soften.
        inside = (slow.min(axis=2) > 60) & (quick.min(axis=2) > 60)
        assert inside.mean() > 0.2
        assert np.abs(slow - quick)[inside].mean() < 4
        assert ((slow.max(axis=2) > 45) == (quick.max(axis=2) > 45)).mean() > 0.93


def test_fast_composes_two_warps() -> None:
    image = _smooth()
    steps = [(OPERATIONS["Stretch"], 1), (OPERATIONS["Perspective"], 1)]
    whole = fast.apply_plan(iter(steps), image, np.random.default_rng(4), None, "original").astype(int)
    rng, parts = np.random.default_rng(4), image
    for step in steps:
        parts = fast.apply_plan(iter([step]), parts, rng, None, "original")
    inside = (whole.min(axis=2) > 60) & (parts.min(axis=2) > 60)
    assert np.abs(whole - parts)[inside].mean() < 3


@pytest.mark.parametrize("quick", [False, True])
def test_share_of_intact_images(quick: bool) -> None:
    augment = recipes.rand_augment(groups=[("Invert",)], intact_prob=0.3, augs_num=1, fast=quick)
    rng = np.random.default_rng(0)
    intact = np.mean([np.array_equal(augment(IMAGE, rng), IMAGE) for _ in range(2000)])
    assert intact == pytest.approx(0.3, abs=0.04)


def test_plans_are_uniform() -> None:
    augment, rng = recipes.rand_augment(), np.random.default_rng(0)
    plans = [list(augment.plan(rng)) for _ in range(6000)]
    names = [operation.name for plan in plans for operation, _ in plan]
    for group in GROUPS.values():
        for operation in group:
            expected = len(names) / len(GROUPS) / len(group)
            assert names.count(operation.name) == pytest.approx(expected, rel=0.2)
    magnitudes = np.bincount([magnitude for plan in plans for _, magnitude in plan])
    assert np.ptp(magnitudes) < 0.05 * magnitudes.sum()
    group_of = {operation.name: group for group, members in GROUPS.items() for operation in members}
    assert all(len({group_of[operation.name] for operation, _ in plan}) == 3 for plan in plans)


def test_a_run_draws_its_strength_once() -> None:
    kinds = [recipes.abinet(seed).strength.geometry for seed in range(600)]
    assert [kinds.count(kind) / 600 for kind in ("rotation", "affine", "perspective")] == pytest.approx(
        [0.33, 0.33, 0.34], abs=0.06
    )
    assert recipes.abinet(5).strength == recipes.abinet(5).strength


def test_strengths_are_those_that_the_published_code_draws_after_seeding() -> None:
    """The kinds on DiG's ranks 0 to 7 (seed 0) and SIGA's strength for its default seed 111."""
    kinds = [abinet.published_strengths(rank)[0].geometry for rank in range(8)]
    assert " ".join(kind[0] for kind in kinds) == "p r p r r a p r"
    siga = abinet.published_strengths(111)[0]
    rescale, blur, noise = 2, 1, 0
    assert (siga.geometry, siga.variance, siga.blur_size, siga.halvings) == ("perspective", 4, 1, 2)
    assert siga.order == (rescale, blur, noise)
    first, second = abinet.published_strengths(0, 2)
    assert first == abinet.published_strengths(0)[0] != second


def test_piecewise_affine_draws_its_grid_for_each_picture() -> None:
    """Between 2 and 4 rows and columns: the draws of a generator, and how often a column of pixels bends."""
    asked = []

    class Spy(np.random.RandomState):
        def normal(self, loc, scale, size):
            asked.append((size[1:], scale))
            return super().normal(loc, scale, size)

    rng, picture = Spy(0), np.zeros((8, 16, 3), np.uint8)
    for _ in range(900):
        views.piecewise_affine(picture, rng)
    counts = np.bincount([3 * (rows - 2) + columns - 2 for (rows, columns), _ in asked], minlength=9)
    assert len(counts) == 9 and counts.min() > 70 and counts.max() < 130
    assert all(0.03 <= scale <= 0.04 for _, scale in asked)


def test_beta_laws() -> None:
    rng = np.random.default_rng(0)
    one_sided, two_sided = asymmetric(rng, 20.0, 20000), symmetric(rng, 45.0, 20000)
    assert one_sided.mean() == pytest.approx(4.0, abs=0.1) and one_sided.min() >= 0 and one_sided.max() <= 20
    assert two_sided.mean() == pytest.approx(0.0, abs=0.4) and two_sided.std() == pytest.approx(15.0, abs=0.3)


def test_normals() -> None:
    fields = np.stack([normals(np.random.default_rng(seed), (8, 3), 2.0) for seed in range(3000)])
    assert np.abs(fields.mean(axis=0)).max() < 0.2 and np.abs(fields.std(axis=0) - 2).max() < 0.15
    assert abs(np.corrcoef(fields[:, 0, 0], fields[:, 0, 1])[0, 1]) < 0.08


def test_jitter_has_torchvision_pixels() -> None:
    rng = np.random.default_rng(0)
    calls = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    image = rng.integers(0, 256, (32, 100, 3)).astype(np.uint8)
    for _ in range(20):
        order, values = abinet.JITTER.draw(rng)
        expected = Image.fromarray(image)
        for kind in order:
            expected = calls[kind](expected, values[kind])
        difference = np.abs(photometric.jitter(image, order, values).astype(int) - np.asarray(expected))
        assert (difference > 0).mean() < 0.02 and difference.max() <= 4


def test_flags_choose_recipes() -> None:
    assert recipes.from_flags({"isscatter_aug": True}) is None
    assert recipes.from_flags({}) is None
    semantic = recipes.from_flags({"issemantic_aug": True, "augs_num": 3, "intact_prob": 0.25})
    assert [len(group) for group in semantic.groups] == [1, 1, 3] and semantic.intact_prob == 0.25
    assert recipes.from_flags({"isrand_aug": True, "fast_aug": True}).fast
    chosen = recipes.from_flags({"issel_aug": True, "warp": True, "noise": True})
    assert [group[0].name for group in chosen.groups] == ["GaussianNoise", "Curve"]
    with pytest.raises(UserError, match="augs_num"):
        recipes.from_flags({"isrotation_aug": True})
    with pytest.raises(UserError, match="unknown"):
        recipes.rand_augment(groups=["fogs"])


def test_global_generators_stay() -> None:
    """Torch's and numpy's global generators stay as they are: augmentation draws only from the generator it is
    given.
    """
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for augment in RECIPES.values():
        augment(IMAGE, np.random.default_rng(0))
    assert torch.equal(torch_before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_sheets(tmp_path) -> None:
    for arguments in (["--recipe", "abinet", "--columns", "2"], ["--each", "--recipe", "straug"]):
        out = tmp_path / "sheet.png"
        assert main(["data", "augment-sheet", str(out), *arguments]) == 0
        with Image.open(out) as sheet:
            assert sheet.width > 300
    assert main(["data", "augment-sheet", str(out), "--images", str(tmp_path / "none")]) == 2
