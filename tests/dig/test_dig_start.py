"""How DiG's models begin, module by module, against the laws of docs/originals/dig.md (sections 5.1 to 5.5)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from projects.dig.model.encoder import SIZES, Encoder
from projects.dig.model.pooling import NAMES
from projects.dig.model.pretraining import MODELS, MoCoViT
from projects.dig.model.recogniser import ENCODERS, build_recogniser

SMALL = {"dim": 32, "mlp_dim": 64}
PRETRAINERS = [(name, head) for name in MODELS for head in NAMES if "_tiny_" in name or "_micro_" in name]
PRETRAINERS = [(name, head) for name, head in PRETRAINERS if not ("micro" in name and head == "conv")]
DECODERS = ("tf_decoder", "small_tf_decoder", "corres_tiny_tf_decoder", "attention", "conditioned")


def uniform(values: torch.Tensor, bound: float, what: str) -> None:
    """Values of U(-bound, bound): none outside, mean and deviation within five standard errors."""
    values, count = values.detach().flatten(), values.numel()
    assert float(values.abs().max()) <= bound * (1 + 1e-6), what
    assert float(values.abs().max()) >= bound * (1 - 20 / count), what
    assert abs(float(values.mean())) <= 5 * bound / math.sqrt(3 * count), what
    assert float(values.square().mean().sqrt()) == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(count)), what


def check(module: nn.Module, name: str, xavier: bool) -> None:
    """One module without children, by its kind; `xavier`: inside the encoder or the paper's patch head."""
    if isinstance(module, nn.Linear):
        fan_in, fan_out = module.in_features, module.out_features
        uniform(module.weight, math.sqrt(6 / (fan_in + fan_out)) if xavier else 1 / math.sqrt(fan_in), name)
        if module.bias is not None and xavier:
            assert not module.bias.any(), name
        elif module.bias is not None and module.bias.numel() > 1:
            uniform(module.bias, 1 / math.sqrt(fan_in), f"{name}.bias")
    elif isinstance(module, nn.Conv2d):
        uniform(module.weight, 1 / math.sqrt(module.weight[0].numel()), name)
    elif isinstance(module, nn.Embedding):
        assert float(module.weight.detach().std()) == pytest.approx(1, rel=0.02)
        assert abs(float(module.weight.detach().mean())) < 0.02
    elif isinstance(module, nn.GRU):
        for parameter_name, parameter in module.named_parameters():
            uniform(parameter, 1 / math.sqrt(module.hidden_size), f"{name}.{parameter_name}")
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
        assert module.weight is None or (bool((module.weight == 1).all()) and not module.bias.any()), name
    else:
        assert not list(module.parameters()), f"{name}: no law is given for {type(module).__name__}"


def check_encoder(encoder: Encoder, name: str, redrawn: bool) -> None:
    """`redrawn`: the stem of a model with the contrastive branch."""
    assert not encoder.mask_token.any()
    for path, module in encoder.named_modules():
        if path.endswith("attn"):
            assert not module.q_bias.any() and not module.v_bias.any()
        if redrawn and path == "patch_embed.proj":
            patches = module.weight[0].numel()
            uniform(module.weight, math.sqrt(6 / (patches + module.out_channels)), f"{name}.{path}")
            assert not module.bias.any()
        elif not list(module.children()):
            check(module, f"{name}.{path}", xavier=True)


@pytest.mark.parametrize(("name", "head"), PRETRAINERS)
def test_pretrainers_begin_by_the_published_laws(name: str, head: str) -> None:
    torch.manual_seed(0)
    kind, size = MODELS[name]
    options = {"pixel": kind != "moco", "contrast": kind != "simmim"}
    model = MoCoViT(SIZES[size], patchnet_name=head, **options, **SMALL)
    check_encoder(model.encoder, "encoder", redrawn=options["contrast"])
    for path, module in model.named_modules():
        if not path.startswith("encoder.") and path and not list(module.children()) and "momentum" not in path:
            check(module, path, xavier=path.startswith("patch_extractor") and head == "regular")
    for averaged, online in model.pairs():
        assert all(torch.equal(*both) for both in zip(averaged.parameters(), online.parameters(), strict=True))
        assert not any(parameter.requires_grad for parameter in averaged.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_recognisers_begin_by_the_published_laws(decoder: str) -> None:
    torch.manual_seed(1)
    options = {"decoder_type": "attention"} if decoder == "attention" else {"decoder_name": decoder}
    if decoder == "conditioned":
        options = {"decoder_name": "small_tf_decoder", "conditioned": True}
    model = build_recogniser(next(iter(ENCODERS)), **options)
    check_encoder(model.encoder, "encoder", redrawn=False)
    for path, module in model.named_modules():
        if path.startswith(("decoder.", "linear_norm.")) and not list(module.children()):
            check(module, path, xavier=False)
