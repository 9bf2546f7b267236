"""The piecewise Adadelta has torch's numbers and torch's state."""

from __future__ import annotations

import copy

import torch

from common.models.cpu import SWITCH
from common.train import optim


def run(kind: type, steps: int, state: dict | None = None) -> tuple[list[torch.Tensor], dict]:
    generator = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((70, 9), (5,), ())]
    optimizer = kind(parameters, lr=0.7, rho=0.9, eps=1e-8)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    for _ in range(steps):
        for parameter in parameters[:2]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


def test_bitwise_equal_to_torch(monkeypatch) -> None:
    monkeypatch.setattr(optim, "PIECE", 100)
    (ours, our_state), (theirs, their_state) = (run(kind, 5) for kind in (optim.Adadelta, torch.optim.Adadelta))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert our_state["state"].keys() == their_state["state"].keys()
    for index, values in their_state["state"].items():
        assert all(torch.equal(our_state["state"][index][name], value) for name, value in values.items())


def test_goes_on_from_torch_state() -> None:
    _, state = run(torch.optim.Adadelta, 2)
    ours, theirs = (run(kind, 2, state)[0] for kind in (optim.Adadelta, torch.optim.Adadelta))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_other_types_go_to_torch() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    parameter.grad = torch.ones(3, dtype=torch.float64)
    optim.Adadelta([parameter], lr=1.0).step()
    assert (parameter < 1).all()


def test_the_switch_leaves_the_step_to_torch(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    monkeypatch.setattr(optim.Adadelta, "_step_one", None)
    ours, theirs = (run(kind, 3)[0] for kind in (optim.Adadelta, torch.optim.Adadelta))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
