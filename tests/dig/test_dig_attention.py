"""Self-attention in training: the image-by-image form against autograd through the plain formula."""

from __future__ import annotations

import pytest
import torch

from common.models.cpu import SWITCH, ImageByImageAttention, split_heads
from projects.dig.model.attention import attend, self_attend


@pytest.mark.parametrize(("tokens", "heads", "width"), [(256, 6, 64), (7, 3, 20)])
def test_equals_autograd_through_the_formula(tokens: int, heads: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, tokens, 3 * heads * width, generator=generator)
    gradient = torch.randn(2, tokens, heads * width, generator=generator)
    found = []
    for ours in (True, False):
        leaf = projected.clone().requires_grad_()
        plain = attend(*split_heads(leaf, heads), exact=True).transpose(1, 2).flatten(2)
        mixed = self_attend(leaf, heads, exact=True) if ours else plain
        mixed.backward(gradient)
        found.append((mixed.detach(), leaf.grad))
    for first, second in zip(*found):
        assert torch.allclose(first, second, rtol=1e-6, atol=1e-6)


def test_gradients_and_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = torch.randn(1, 3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ImageByImageAttention.apply(x, 2), (leaf,))
    monkeypatch.setattr(ImageByImageAttention, "apply", None)
    self_attend(leaf, 2, exact=True)
    self_attend(leaf.float(), 2)
    self_attend(leaf.float(), 2, dropout=0.1, exact=True)
    monkeypatch.setenv(SWITCH, "0")
    self_attend(leaf.float(), 2, exact=True)
