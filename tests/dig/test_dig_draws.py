"""What the contrastive view and the fine-tuning augmentation draw, against docs/originals/dig.md, section 4."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from common.augment import abinet, views
from tests.common.lmdbs import noise


class Spy:
    """Stands for a generator and notes the laws that it is asked for."""

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.asked = np.random.default_rng(seed), []

    def uniform(self, low: float, high: float) -> float:
        self.asked.append((low, high))
        return self.rng.uniform(low, high)

    def integers(self, low: int, high: int, size: None = None) -> int:
        self.asked.append(("integer", low, high - 1))
        return self.rng.integers(low, high, size)

    def normal(self, loc: float, scale: float, size: tuple[int, ...]) -> np.ndarray:
        self.asked.append(("normal", loc))
        return self.rng.normal(loc, scale, size)

    def permutation(self, total: int) -> np.ndarray:
        self.asked.append(("permutation", total))
        return self.rng.permutation(total)

    def beta(self, a: float, b: float, size: int | None = None) -> float | np.ndarray:
        self.asked.append(("beta", a, b))
        return self.rng.beta(a, b, size)


LAWS = {
    "linear_contrast": [(0.5, 1.0)],
    "gaussian_blur": [(0.5, 1.5)],
    "crop_rows": [(0, 0.3), (0, 0.3)],
    "crop_columns": [(0, 0.1), (0, 0.1)],
    "sharpen": [(0, 0.5), (0, 0.5)],
    "rotate": [(-10, 10)],
    "piecewise_affine": [("integer", 2, 4), ("integer", 2, 4), (0.03, 0.04), ("normal", 0)],
    "perspective": [(0.05, 0.1), ("normal", 0)],
    "solarize": [(32, 128), (0, 1)],
    "grayscale": [(0, 1)],
}


@pytest.mark.parametrize("name", LAWS)
def test_laws_of_each_change(name: str) -> None:
    spy, picture = Spy(), noise(0, 20, 50)
    changed = views.CHANGES[name](picture, spy)
    assert spy.asked == LAWS[name]
    assert changed.shape == picture.shape and changed.dtype == np.uint8


def test_two_to_five_of_ten_changes_each_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    view = views.ContrastiveView()
    monkeypatch.setattr(
        view, "changes", [lambda image, rng, n=name: (used[-1].append(n), image)[1] for name in views.CHANGES]
    )
    rng, picture = np.random.default_rng(0), noise(0, 8, 16)
    for _ in range(3000):
        used.append([])
        assert view(picture, rng).shape == (32, 128, 3)
    sizes = Counter(map(len, used))
    assert sorted(sizes) == [2, 3, 4, 5] and all(650 < count < 850 for count in sizes.values())
    assert all(len(set(names)) == len(names) for names in used)
    times, first = Counter(itertools.chain.from_iterable(used)), Counter(names[0] for names in used)
    assert len(times) == 10 and all(930 < count < 1170 for count in times.values())  # 3.5 of 10 in 3000
    assert all(220 < count < 380 for count in first.values())  # in random order


def test_jitter_and_grey_of_the_view() -> None:
    """Colour jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, grey with 0.2."""
    assert (views.JITTER.brightness, views.JITTER.contrast) == (0.4, 0.4)
    assert (views.JITTER.saturation, views.JITTER.hue) == (0.2, 0.1)
    view, picture, grey, jittered = views.ContrastiveView(names=()), noise(0, 32, 128), 0, 0
    for seed in range(600):
        spy = Spy(seed)
        image = view(picture, spy)
        grey += bool((image[..., 0] == image[..., 1]).all())
        jittered += (-0.1, 0.1) in spy.asked
    assert grey / 600 == pytest.approx(0.2, abs=0.06) and jittered / 600 == pytest.approx(0.8, abs=0.06)


def test_pixels_of_the_plain_changes() -> None:
    """The grey values that each law makes of known ones."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)

    class Fixed(Spy):
        def __init__(self, *values: float) -> None:
            super().__init__()
            self.values = list(values)

        def uniform(self, low: float, high: float) -> float:
            assert low <= self.values[0] <= high
            return self.values.pop(0)

    contrast = views.linear_contrast(ramp, Fixed(0.5))[0, :, 0].astype(int)
    assert [contrast[0], contrast[127], contrast[255]] == [63, 127, 191]
    above, below = (views.solarize(ramp, Fixed(100, side))[0, :, 0].astype(int) for side in (0.2, 0.8))
    assert [above[99], above[100], below[99], below[100]] == [99, 155, 156, 100]
    black = views.rotate(np.full((20, 40, 3), 255, np.uint8), Fixed(10.0))
    assert not black[0, 0].any() and not black[-1, -1].any() and black[10, 20].all()
    flat = np.full((20, 40, 3), 90, np.uint8)
    assert (views.piecewise_affine(flat, np.random.default_rng(0)) == 90).all()  # edges are replicated
    cut = np.zeros((20, 40, 3), np.uint8)
    cut[6:] = 200
    assert (views.crop_rows(cut, Fixed(0.3, 0.0)) == 200).all()
    red = np.tile(np.array([255, 0, 0], np.uint8), (4, 4, 1))
    assert (views.grayscale(red, Fixed(1.0)) == 76).all() and (views.grayscale(red, Fixed(0.0)) == red).all()


def test_fine_tuning_augmentation_draws_by_the_published_laws() -> None:
    """Geometry 0.5, deterioration 0.25, jitter 0.25; kinds, strengths and parameters as ABINet's."""
    spy = Spy()
    abinet.draw_strength(spy)
    assert spy.asked == [(0, 1), ("beta", 1, 4), ("beta", 1, 4), (-90.0, 90.0), (0, 4.0), ("permutation", 3)]
    laws = {
        "rotation": [("beta", 4, 4)],
        "affine": [("beta", 4, 4), (0.5, 2.0), ("beta", 4, 4), ("beta", 4, 4)],
        "perspective": [("beta", 1, 4), ("beta", 1, 4)],
    }
    for kind, expected in laws.items():
        spy = Spy()
        abinet.move(noise(0), None, kind, spy)
        assert spy.asked == [*expected, ("integer", 0, 3)]  # and one of four interpolations
    assert abinet.AbinetAugment().probabilities == (0.5, 0.25, 0.25)
    jitter = abinet.JITTER
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.5, 0.5, 0.5, 0.1)
