"""Comparison with published numbers in units of what float32 itself does to a computation.

A golden is one float32 run on somebody's processor. It is compared with our own computation in float64 (same float32
weights and constants); the unit is our float32 noise N: the largest difference from float64 over runs whose inputs are
multiplied by 1 + 1.2e-7 or 1 - 1.2e-7. So a limit follows the condition of what is computed, on every processor:

- activations: `|golden - float64| <= 3 N + 1e-6 max|float64|`, with N capped (see `Cap`);
- gradient norms, in the groups "LocalizationNetwork" and "rest": maximum and median of the relative differences at most
  3 times those of N;
- losses: 1e-4 relative.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from common.models.tps import GridGenerator

EPSILON = 1.2e-7
RUNS, RUNS_LARGE, LARGE = 5, 2, 30_000_000  # fewer runs for models with many parameters: their tensors are many draws
FACTOR = 3.0


class Cap:
    """Largest N, as a share of the largest absolute value, that a limit is made of."""

    PLAIN = 3e-5
    TPS = 2e-3
    BATCH_NORM = 2e-4  # train-mode batch norm over a handful of images


@dataclass
class Outcome:
    """What one run computes. `tensors` are compared elementwise, `scalars` relatively, `gradients` hold one norm for
    each parameter (None: no gradient) of each total that was differentiated.
    """

    tensors: dict[str, object] = field(default_factory=dict)
    scalars: dict[str, object] = field(default_factory=dict)
    gradients: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def frozen(self) -> Outcome:
        """The same with arrays and numbers in float64 for tensors."""

        def array(value: object) -> np.ndarray:
            value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            return value.astype(np.float64)

        return Outcome(
            {name: array(value) for name, value in self.tensors.items()},
            {name: float(array(value)) for name, value in self.scalars.items()},
            self.gradients,
        )


@contextmanager
def float64() -> Iterator[None]:
    """Inside, new tensors are float64 and `Tensor.float` keeps float64, so that a whole computation stays in it."""
    single, default = Tensor.float, torch.get_default_dtype()

    def widened(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.double(*args, **kwargs)

    torch.set_default_dtype(torch.float64)
    Tensor.float = widened
    try:
        yield
    finally:
        Tensor.float = single
        torch.set_default_dtype(default)


def gradient_norms(model: nn.Module, total: Tensor, retain: bool = False) -> dict[str, float | None]:
    """L2 norm of the gradient of `total` for each parameter; None where there is none."""
    model.zero_grad(set_to_none=True)
    total.backward(retain_graph=retain)
    return {name: None if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}


def as_published(model: nn.Module) -> nn.Module:
    """Compute the spline's coefficients in float32, as the goldens did: their noise is part of N."""
    for module in model.modules():
        if isinstance(module, GridGenerator):
            module.product = torch.float32
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every probability of dropping something to zero."""
    for module in model.modules():
        for name in ("p", "drop_prob", "dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model


def moved(value: Tensor, run: int) -> Tensor:
    """`value` with each element multiplied by 1 + EPSILON or 1 - EPSILON; integers stay."""
    if not value.is_floating_point():
        return value
    signs = torch.from_numpy(np.random.RandomState(run).choice((-1.0, 1.0), tuple(value.shape)))
    return (value.double() * (1 + EPSILON * signs)).to(value.dtype)


def measure(
    compute: Callable[..., Outcome], model: nn.Module, inputs: Mapping[str, Tensor], runs: int | None = None
) -> Measured:
    """Run `compute(model, **inputs)` several times in float32, with moved inputs, and once in float64.

    The model's state is the same before every run. Inputs that must keep their values (masks, ids) are closed over.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    double = copy.deepcopy(model).double()
    with float64():
        exact = compute(double, **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}).frozen()
    del double
    singles, model = [], as_published(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    for run in range(runs or (RUNS if size < LARGE else RUNS_LARGE)):
        singles.append(compute(model, **{name: moved(value, run) for name, value in inputs.items()}).frozen())
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
    return Measured(exact, singles)


@dataclass
class Measured:
    """Our float64 result and the float32 runs that say how far float32 is from it."""

    exact: Outcome
    singles: list[Outcome]

    def noise(self, name: str, part: object = ...) -> float:
        """N of a tensor, or of a part of it."""
        exact = self.exact.tensors[name][part]
        return max(np.abs(run.tensors[name][part] - exact).max(initial=0) for run in self.singles)

    def limit(self, name: str, cap: float, part: object = ...) -> float:
        """How far a golden may be from float64."""
        largest = np.abs(self.exact.tensors[name][part]).max(initial=0)
        return FACTOR * min(self.noise(name, part), cap * largest) + 1e-6 * largest

    def check(self, name: str, golden: object, cap: float = Cap.PLAIN, part: object = ...) -> None:
        """A tensor, whole or a part of it, against the golden of the same shape."""
        exact = self.exact.tensors[name][part]
        golden = np.asarray(golden, np.float64)
        assert golden.shape == exact.shape, f"{name}: shape {exact.shape}, golden {golden.shape}"
        off, allowed = np.abs(golden - exact).max(initial=0), self.limit(name, cap, part)
        assert off <= allowed, f"{name}: off by {off:.3g}, allowed {allowed:.3g}"
        largest, noise = np.abs(exact).max(initial=0), self.noise(name, part)
        assert noise <= 10 * cap * largest + 1e-6, f"{name}: our float32 is {noise:.3g} away from our float64"

    def check_stats(self, name: str, stats: Mapping[str, object], cap: float = Cap.PLAIN) -> None:
        """Shape, mean, standard deviation and largest absolute value of the whole tensor, of which a case may store a
        part only. Each moves by no more than the tensor's largest difference.
        """
        exact = self.exact.tensors[name]
        assert list(exact.shape) == list(stats.get("shape", exact.shape)), f"{name}: shape {exact.shape}"
        # numpy's deviation or torch's, which divides by one less
        found = {"mean": [exact.mean()], "std": [exact.std(), exact.std(ddof=1)], "absmax": [np.abs(exact).max()]}
        allowed = self.limit(name, cap)
        for what in found.keys() & stats.keys():
            off = min(abs(value - float(stats[what])) for value in found[what])
            assert off <= allowed, f"{name}: {what} off by {off:.3g}, allowed {allowed:.3g}"

    def sure_steps(self, name: str, cap: float = Cap.PLAIN) -> int:
        """Steps of a greedy decoding `[B, T, C]` whose inputs are beyond doubt: up to the first step with a near tie,
        that step included, because its logits still come from the same history.
        """
        exact = self.exact.tensors[name]
        ids, steps = exact.argmax(-1), exact.shape[1]
        for run in self.singles:
            if run.tensors[name].shape != exact.shape:
                raise AssertionError(f"{name}: float32 and float64 decode different numbers of steps")
            different = (run.tensors[name].argmax(-1) != ids).any(0)
            steps = min(steps, int(different.argmax()) + 1 if different.any() else steps)
        ties = self.ties(name, cap, np.s_[:, :steps]).any(0)
        return int(ties.argmax()) + 1 if ties.any() else steps

    def ties(self, name: str, cap: float, part: object = ...) -> np.ndarray:
        """Where the best two classes are too close for the golden's arg-max to be known."""
        best = np.sort(self.exact.tensors[name][part], axis=-1)[..., -2:]
        return best[..., 1] - best[..., 0] <= 2 * self.limit(name, cap, part)

    def check_decoding(
        self, name: str, golden: object, ids: object = None, *, feedback: bool, cap: float = Cap.PLAIN
    ) -> int:
        """Logits and arg-max ids of a decoding; with `feedback`, up to the first near tie. Returns the steps
        compared. `golden` may be None.
        """
        exact = self.exact.tensors[name]
        steps = self.sure_steps(name, cap) if feedback else exact.shape[1]
        part = np.s_[:, :steps]
        if golden is not None:
            assert np.shape(golden) == exact.shape, f"{name}: shape {exact.shape}, golden {np.shape(golden)}"
            self.check(name, np.asarray(golden)[part], cap, part)
        if ids is not None:
            sure = ~self.ties(name, cap, part)
            assert np.array_equal(exact[part].argmax(-1)[sure], np.asarray(ids)[part][sure]), f"{name}: ids"
        return steps

    def check_scalar(
        self, name: str, golden: float, relative: float = 1e-4, floor: float = 0.0, most: float = 0.01
    ) -> None:
        """A loss, a norm or another number: relative to float64, or what float32 makes of it (at most `most`)."""
        exact = self.exact.scalars[name]
        noise = max(abs(run.scalars[name] - exact) for run in self.singles)
        allowed = relative * abs(exact) + min(FACTOR * noise, most * abs(exact)) + floor
        assert abs(golden - exact) <= allowed, f"{name}: {golden:.8g}, float64 {exact:.8g}, allowed {allowed:.2g}"

    def check_gradients(self, key: str, golden: Mapping[str, float | None], floor: float = 1e-6) -> None:
        """Norms by parameter, of the golden's parameters; a missing name or None means no gradient. `floor` is what the
        median may always differ by: goldens have seven digits.
        """
        exact = self.exact.gradients[key]
        wanted = {name: value for name, value in golden.items() if value is not None}
        assert not wanted.keys() - exact.keys(), sorted(wanted.keys() - exact.keys())
        unexpected = {name for name, value in exact.items() if value and name not in wanted}
        scale = max(wanted.values())
        assert not {name for name in unexpected if exact[name] > 1e-7 * scale}, sorted(unexpected)
        missing = [name for name in wanted if exact[name] is None]
        assert not missing, missing
        zero = {name for name in wanted if exact[name] <= 1e-8 * scale}
        assert all(wanted[name] <= 1e-5 * scale for name in zero), "a gradient that must vanish does not"
        for group in ("LocalizationNetwork", "rest"):
            names = [n for n in wanted if n not in zero and ("LocalizationNetwork" in n) == (group != "rest")]
            if names:
                exact = np.array([self.exact.gradients[key][name] for name in names])
                rows = np.array([[run.gradients[key][name] for name in names] for run in self.singles])
                golden = np.array([wanted[name] for name in names])
                _check_norms(f"{key} {group}: gradient", names, golden, exact, rows, floor)

    def check_parameters(self, name: str, golden: Mapping[str, float], model: nn.Module) -> None:
        """Norms of parameters after steps, which the tensor `name` holds in `golden`'s order.

        Those of matrices: the median relative difference is at most 1e-5 (a wrong schedule of weight decay gives 5e-5).
        Vectors are few numbers: an optimizer that divides by gradients near zero moves them by their rounding, so both
        median and maximum follow float32's noise.
        """
        exact, stored = self.exact.tensors[name], np.array(list(golden.values()))
        rows = np.array([run.tensors[name] for run in self.singles])
        matrix = np.array([model.get_parameter(key).ndim >= 2 for key in golden])
        for what, part in (("matrix", matrix), ("vector", ~matrix)):
            if part.any():
                names = [key for key, own in zip(golden, part) if own]
                _check_norms(f"{name}: {what}", names, stored[part], exact[part], rows[:, part], 1e-5)
        if matrix.any():
            median = np.median(np.abs(stored / exact - 1)[matrix])
            assert median <= 1e-5, f"{name}: matrices are off by {median:.3g} in the median"


def _check_norms(
    what: str, names: list[str], golden: np.ndarray, exact: np.ndarray, rows: np.ndarray, digits: float
) -> None:
    """Median and maximum of relative differences of `golden`, against those of the float32 runs `rows`."""
    noise, off = np.abs(rows - exact) / exact, np.abs(golden - exact) / exact
    # the maximum: a norm is itself a float32 sum
    for which, ours, theirs, floor in (
        ("median", np.median(noise, axis=1).max(), np.median(off), digits),
        ("maximum", noise.max(), off.max(), 2e-4),
    ):
        assert theirs <= FACTOR * ours + floor, (
            f"{what} norms: {which} of the relative differences of {len(names)} is {theirs:.3g}, float32 noise"
            f" {ours:.3g} (largest: {names[int(off.argmax())]})"
        )
