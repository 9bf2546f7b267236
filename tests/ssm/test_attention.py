"""Cross-attention that leaves the image's tokens unprojected, against keys and values."""

from __future__ import annotations

import pytest
import torch

from common.models import cpu
from projects.ssm.model.attention import MultiheadAttention


def layer_and_input(dropout: float, length: int) -> tuple[MultiheadAttention, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = MultiheadAttention(48, 4, dropout).train()
    torch.nn.init.normal_(layer.in_proj_bias)
    return layer, torch.randn(3, length, 48, requires_grad=True), torch.randn(3, 33, 48, requires_grad=True)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_folding_equals_projecting(dropout: float) -> None:
    layer, queries, tokens = layer_and_input(dropout, 5)
    found = []
    for folded in (True, False):
        torch.manual_seed(1)
        leaves = [*layer.parameters(), queries, tokens]
        mixed = (
            cpu.attend_folded(layer, queries, tokens) if folded else layer.attend(queries, *layer.keys_values(tokens))
        )
        found.append([mixed, *torch.autograd.grad(mixed.square().sum(), leaves)])
    for first, second in zip(*found):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_it_is_taken_with_few_queries_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cpu, "attend_folded", lambda layer, queries, tokens: calls.append(queries.shape))
    layer, queries, tokens = layer_and_input(0.1, 6)
    layer(queries, tokens)
    assert calls == [queries.shape]
    _, longer, _ = layer_and_input(0.1, 7)  # 28 rows of queries: more than half of the width
    layer(longer, tokens)
    layer.eval()(queries, tokens)
    layer.train()(queries, layer.keys_values(tokens))
    monkeypatch.setenv(cpu.SWITCH, "0")
    layer(queries, tokens)
    assert len(calls) == 1
