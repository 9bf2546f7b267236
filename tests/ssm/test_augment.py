"""SSM's own augmentation: the collation of superimposed views, and the fine-tuning RandAugment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from common.augment.sheet import crops
from common.errors import UserError
from projects.ssm.finetune import augment
from projects.ssm.pretrain import collate


def _batch(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.stack(crops(count)))


def test_views_follow_their_definition() -> None:
    images = _batch()
    directions = np.array([1, 2, 3, 1, 3])
    views = collate.superimpose(images, images, directions)
    unit = images.permute(0, 3, 1, 2).float() / 255
    flips = {1: (3,), 2: (2,), 3: (2, 3)}
    for index, direction in enumerate(directions):
        flipped = unit[index : index + 1].flip(flips[int(direction)])
        assert torch.equal(views.student_flipped[index : index + 1], flipped)
        assert torch.allclose(views.student_mix[index : index + 1], (unit[index : index + 1] + flipped) / 2)
        given = collate.teacher_parameters(index, 32, 128)
        moved = functional.affine(flipped, given.angle, list(given.translate), 1.0, list(given.shear))
        moved = functional.rgb_to_grayscale(moved, 3) if given.grey else moved
        assert torch.allclose(views.teacher_flipped[index : index + 1], moved, atol=1e-6)
    assert views.positive.tolist() == [0] * 5 and views.negative.tolist() == directions.tolist()


def test_collation_leaves_the_global_generators() -> None:
    before = torch.get_rng_state()
    collate.superimpose(_batch(3), _batch(3), np.array([1, 1, 1]), seeds=np.array([90001, 90002, 90003]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("mode", "shares"),
    [("HF", (1, 0, 0)), ("VF", (0, 1, 0)), ("Hybrid", (0.5, 0.5, 0)), ("aug_pool", (0.34, 0.33, 0.33))],
)
def test_directions(mode: str, shares: tuple[float, ...]) -> None:
    drawn = collate.draw_directions(mode, 6000, np.random.default_rng(0))
    assert [np.mean(drawn == direction) for direction in (1, 2, 3)] == pytest.approx(shares, abs=0.03)


def test_unknown_direction() -> None:
    with pytest.raises(UserError, match="--direction: RO"):
        collate.draw_directions("RO", 1, np.random.default_rng(0))


def test_sixteen_operations() -> None:
    picture = Image.fromarray(crops(2)[1])
    level = augment.MAGNITUDE / 10
    results = {name: change(picture, level, np.random.default_rng(0)) for name, change in augment.OPERATIONS.items()}
    assert len(results) == 16
    for name, result in results.items():
        assert result.mode == "RGB" and (result.size == picture.size) == (name != "Rotate"), name
    pixels = np.asarray(picture)
    assert np.array_equal(np.asarray(results["PosterizeIncreasing"]), pixels & 0b11000000)
    assert np.array_equal(np.asarray(results["SolarizeIncreasing"]), np.where(pixels < 128, pixels, 255 - pixels))
    assert np.array_equal(np.asarray(results["SolarizeAdd"]), np.where(pixels < 128, pixels + 55, pixels))


def test_rand_augment_is_repeatable() -> None:
    change, image = augment.SceneTextRandAugment(), crops(2)[1]
    changed = 0
    for seed in range(40):
        first, second = (change(image, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, second)
        changed += not np.array_equal(first, image)
    assert 25 <= changed <= 40  # none of the three is applied one time in eight
