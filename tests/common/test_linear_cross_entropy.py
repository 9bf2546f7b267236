"""The classifier's loss with gradients taken in the forward pass equals torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.losses import linear_cross_entropy as module
from common.losses.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, rows: int, factor: float) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    torch.manual_seed(0)
    head, x, target = torch.nn.Linear(6, 50), torch.randn(11, 6), torch.randint(0, 50, (11,))
    found = []
    for loss_of in (linear_cross_entropy, lambda a, h, t: F.cross_entropy(h(a), t)):
        head.zero_grad()
        leaf = x.clone().requires_grad_()
        loss = loss_of(leaf, head, target)
        (factor * loss).backward()
        found.append((loss.detach(), leaf.grad, head.weight.grad.clone(), head.bias.grad.clone()))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_without_gradients_and_under_autocast() -> None:
    torch.manual_seed(0)
    head, x, target = torch.nn.Linear(6, 50), torch.randn(5, 6), torch.randint(0, 50, (5,))
    expected = F.cross_entropy(head(x), target).detach()
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(x, head, target), expected)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(leaf, head, target)
    loss.backward()
    assert leaf.grad.dtype == head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected, rtol=2e-2, atol=2e-2)
