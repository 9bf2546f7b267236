"""Weights of others: DiG's encoder in both forms of TransOCR, and the files that PARSeq's authors release."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.infer.recognizer import open_recognizer
from common.text.charset import CHARSET_94
from projects.dig.model.encoder import Encoder, EncoderSize
from projects.ssm import weights
from projects.ssm.finetune import read
from projects.ssm.finetune.files import open_model
from projects.ssm.finetune.run import build
from projects.ssm.model.build import build_recogniser
from tests.common.lmdbs import encoded, noise
from tests.ssm.runs import configuration, write_corpus

LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
ENCODER = {"img_size": (32, 128), "patch_size": (8, 8), "enc_embed_dim": 64, "enc_num_heads": 2, "enc_depth": 2,
           "dec_embed_dim": 64, "dec_num_heads": 2, "dec_depth": 1}  # fmt: skip


def dig_checkpoint(path: Path, depth: int = 2) -> Encoder:
    torch.manual_seed(3)
    encoder = Encoder(EncoderSize(64, 2, depth=depth, patch=8))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.2)
    torch.save({"model": {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}}, path)
    return encoder.eval()


def encoder_missing(report) -> list[str]:
    return [name for name in report.missing if name.startswith("encoder.")]


def attended(block, tokens: Tensor) -> Tensor:
    return block.attn(block.norm1(tokens))


def test_dig_fills_the_standard_encoder(tmp_path: Path) -> None:
    encoder = dig_checkpoint(tmp_path / "dig.pth")
    model = build_recogniser("TransOCR", LOWER, ENCODER)
    report = weights.load_encoder(model, str(tmp_path / "dig.pth"))
    assert encoder_missing(report) == ["encoder.pos_embed"] and report.unexpected == ["encoder.mask_token"]
    bias = model.encoder.blocks[1].attn.qkv.bias
    own = encoder.blocks[1].attn
    assert torch.equal(bias, torch.cat([own.q_bias, torch.zeros(64), own.v_bias]))
    tokens = torch.randn(2, 64, 64)
    for theirs, ours in zip(encoder.blocks, model.eval().encoder.blocks):
        torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-4)


def test_dig_fills_the_split_encoder(tmp_path: Path) -> None:
    encoder = dig_checkpoint(tmp_path / "dig.pth")
    model = build_recogniser("TransOCR", LOWER, {**ENCODER, "standard": False})
    report = weights.load_encoder(model, str(tmp_path / "dig.pth"))
    assert encoder_missing(report) == []
    tokens = torch.randn(2, 64, 64)
    for theirs, ours in zip(encoder.blocks, model.eval().encoder.blocks):
        torch.testing.assert_close(attended(ours, tokens), attended(theirs, tokens), rtol=1e-4, atol=1e-4)
    # and back: a split encoder starts the standard one
    torch.save({"model": {k: v for k, v in model.state_dict().items() if k.startswith("encoder.")}}, tmp_path / "s.pth")
    fused = build_recogniser("TransOCR", LOWER, ENCODER)
    assert encoder_missing(weights.load_encoder(fused, str(tmp_path / "s.pth"))) == ["encoder.pos_embed"]
    for theirs, ours in zip(encoder.blocks, fused.eval().encoder.blocks):
        torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-4)


def test_a_part_of_an_encoder_is_refused(tmp_path: Path) -> None:
    dig_checkpoint(tmp_path / "dig.pth", depth=1)
    with pytest.raises(UserError, match=r"12 needed tensors do not fit \(encoder\.blocks\.1\."):
        weights.load_encoder(build_recogniser("TransOCR", LOWER, ENCODER), str(tmp_path / "dig.pth"))
    state = build_recogniser("TransOCR", LOWER, ENCODER).state_dict()
    torch.save({"model": {"patch_embed.proj.bias": state["encoder.patch_embed.proj.bias"]}}, tmp_path / "one.pth")
    with pytest.raises(UserError, match="25 needed tensors do not fit"):
        weights.load_encoder(build_recogniser("TransOCR", LOWER, ENCODER), str(tmp_path / "one.pth"))
    torch.save({"state_dict": dict(list(state.items())[:5])}, tmp_path / "half.ckpt")
    for load in (weights.load_matching, lambda model, path: weights.load_recogniser(model, LOWER, path)):
        with pytest.raises(UserError, match=r"do not fit|no recogniser"):
            load(build_recogniser("TransOCR", LOWER, ENCODER), str(tmp_path / "half.ckpt"))


RELEASED = {
    "parseq": ("PARSeq", {"patch_size": (4, 8)}),
    "parseq_tiny": ("PARSeq", {"patch_size": (4, 8), "embed_dim": 192, "enc_num_heads": 3, "dec_num_heads": 6}),
    "vitstr": ("ViTSTR", {"img_size": (32, 128), "patch_size": (4, 8)}),
    "crnn": ("CRNN", {}),
    "trba": ("TRBA", {}),
    "abinet": ("ABINet", {}),
}


def same_reading(ours: torch.nn.Module, theirs: torch.nn.Module, image: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(image, 3), theirs.eval()(image, 3))


@pytest.mark.parametrize("form", ["release", "lightning", "compiled"])
@pytest.mark.parametrize("name", RELEASED)
def test_released_files_open_alone(name: str, form: str, tmp_path: Path, capsys) -> None:
    if form != "release" and name not in ("parseq_tiny", "crnn"):
        pytest.skip("two models show the forms")
    kind, sizes = RELEASED[name]
    torch.manual_seed(1)
    model = build_recogniser(kind, CHARSET_94, sizes)
    state = model.state_dict()
    path = tmp_path / f"{name}-0123abcd.{'pt' if form == 'release' else 'ckpt'}"
    if form == "lightning":  # today's: `model.` before all names, and hyper-parameters without a class
        flat = {f"model.{key.removeprefix('model.')}": value for key, value in state.items()}
        torch.save({"state_dict": flat, "hyper_parameters": {"charset_train": CHARSET_94, "name": name}}, path)
    else:
        prefix = "module._orig_mod." if form == "compiled" else ""
        torch.save({f"{prefix}{key}": value for key, value in state.items()}, path)
    opened, options = open_model(path)
    assert type(opened).__name__ == kind and options["charset_train"] == CHARSET_94
    same_reading(opened, model, torch.randn(1, 3, 32, 128).clamp(-1, 1))
    if name == "crnn":
        (tmp_path / "a.png").write_bytes(encoded(noise(0)))
        (found,) = open_recognizer(path, device="cpu")([tmp_path / "a.png"])
        assert found.error is None
        assert read.main([str(path), "--device", "cpu", "--images", str(tmp_path / "a.png")]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/a.png: {found.text}"


def test_sizes_of_pretrained_are_taken(tmp_path: Path, capsys, monkeypatch) -> None:
    """`model=parseq pretrained=parseq-tiny`: the file of torch.hub's cache, its sizes, its rows by character."""
    model = build_recogniser("PARSeq", CHARSET_94, RELEASED["parseq_tiny"][1])
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    digest = hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()[:8]
    (tmp_path / "x.pt").rename(cache / f"parseq_tiny-{digest}.pt")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    corpus = write_corpus(tmp_path / "corpus")
    o = configuration(corpus, "pretrained=parseq-tiny", "model._target_=strhub.models.parseq.system.PARSeq")
    system = build(replace(o, model=weights.with_sizes_of(o.pretrained, o.model)), tmp_path)
    told = capsys.readouterr().out
    assert "model.embed_dim=192" in told and " 37 characters  [end] 0 1" in told
    assert torch.equal(system.model.head.weight[1], model.head.weight[1])
    (cache / f"parseq_tiny-{digest}.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="its hash is not the one in its name"):
        weights.local("parseq-tiny")
    with pytest.raises(UserError, match=r"no cache holds it: fetch .*trba-cfaed284\.pt into"):
        weights.local("trba")
