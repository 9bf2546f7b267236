"""First weights of every model: the statistics of the published initialisations (spec, corrections and section 5)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from projects.ssm.model.build import build_recogniser

LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
TIMM = ("TransOCR", "ClusterSeq", "PARSeq", "ViTSTR")
STOCK = ("CRNN", "TRBA", "TRBC", "ABINet")


def truncated(weight: torch.Tensor) -> bool:
    """Normal 0.02, but for the draws (one in 2^24) that torch clips to its bounds -2 and 2."""
    weight = weight.detach()[weight.detach().abs() < 2]
    few = max(0.01, 4 / math.sqrt(2 * weight.numel()))
    return abs(float(weight.std()) / 0.02 - 1) < few and float(weight.abs().max()) < 0.2


def fan_out(layer: nn.Conv2d) -> bool:
    expected = math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]))
    return abs(float(layer.weight.detach().std()) / expected - 1) < max(0.01, 4 / math.sqrt(2 * layer.weight.numel()))


@pytest.mark.parametrize("name", STOCK)
def test_stock_recognisers(name: str) -> None:
    torch.manual_seed(0)
    model = build_recogniser(name, LOWER, {"dropout": 0.1})
    checked = 0
    for path, module in model.named_modules():
        if path.endswith("localization_fc2"):  # the published call leaves it as RARE starts it
            assert not module.weight.any() and module.bias.any()
            continue
        if isinstance(module, (nn.Linear, nn.Embedding)):
            assert truncated(module.weight), path
        elif isinstance(module, nn.Conv2d):
            assert fan_out(module), path
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            assert (module.weight == 1).all(), path
        else:
            continue
        checked += 1
        if getattr(module, "bias", None) is not None:
            assert not module.bias.any(), path
    assert checked >= 10
    if name == "ABINet":
        gate = model.first_alignment()
        assert truncated(gate["w_att.weight"]) and not gate["w_att.bias"].any() and not gate["cls.bias"].any()


@pytest.mark.parametrize("name", TIMM)
def test_transformers(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": (32, 128), "patch_size": (4, 8), "enc_depth": 1, "dec_depth": 1}
    model = build_recogniser(name, LOWER, sizes)
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            assert truncated(module.weight), path
            assert getattr(module, "bias", None) is None or not module.bias.any(), path
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), path
        elif isinstance(module, nn.MultiheadAttention):  # torch's xavier-uniform over the three projections
            assert float(module.in_proj_weight.detach().abs().max()) <= math.sqrt(6 / (4 * module.embed_dim))
            assert float(module.in_proj_weight.detach().std()) == pytest.approx(
                math.sqrt(2 / (4 * module.embed_dim)), rel=0.02
            )
    tables = {"pos_queries", "encoder.pos_embed", "model.pos_embed"}
    found = [tensor for path, tensor in model.named_parameters() if path in tables]
    assert found and all(truncated(table) for table in found)


def test_the_language_model_alone() -> None:
    model = build_recogniser("ABINet", LOWER, {"lm_only": True, "v_num_layers": 1, "l_num_layers": 1})
    trained = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"language"}
