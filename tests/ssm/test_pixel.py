"""main_pixel.py at its smallest: both tasks, best files, resuming, measuring alone, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.train.checkpoint import load
from projects.ssm.model.pixel import VARIANTS, UniPixelViT
from projects.ssm.model.pretrainer import build_pretrainer
from projects.ssm.pixel.data import evaluation_pairs
from projects.ssm.pixel.evaluate import measure
from projects.ssm.pretrain.flags import parse_pixel
from projects.ssm.pretrain.main_pixel import main
from projects.ssm.weights import load_pixel_encoder
from tests.common.compare import same
from tests.common.lmdbs import encoded, noise, write_words


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pixel")
    for part in ("train", "val"):
        write_words(root / f"sr-{part}", ["word"] * 6, size=(32, 128), pairs=True)
        for name in ("image", "mask"):
            (root / part / name).mkdir(parents=True)
        for i in range(4):
            picture = noise(i, 32, 128)
            mask = np.repeat((picture[..., :1] > 128) * np.uint8(255), 3, axis=2)
            (root / part / "image" / f"{i}.jpg").write_bytes(encoded(picture, "JPEG"))
            (root / part / "mask" / f"{i}_mask.jpg").write_bytes(encoded(mask, "JPEG"))
    model = build_pretrainer("ssm_micro_patch16x8")
    torch.save({"model": model.state_dict()}, root / "checkpoint-19.pth")
    torch.save([1, 2], root / "list.pth")
    return root


def words(data: Path, out: Path, kind: str, *more: object) -> list[str]:
    places = f"--data_path {data}/sr-train --eval_data_path {data}/sr-val" if kind == "SR" else f"--data_path {data}"
    fixed = f"""--pixel_type {kind} {places} --output_dir {out} --log_dir {out}/log --demo_dir {out}/vis --batch_size 2
        --epochs 2 --warmup_epochs 1 --lr 1e-3 --num_workers 0 --model pixel_vit_micro_patch16x8 --device cpu
        --pretrained {data}/checkpoint-19.pth"""
    return [*fixed.split(), *map(str, more)]


BEST = {"SR": "psnr-*-ssim-*-checkpoint-?.pth", "Seg": "IoU-*-checkpoint-?.pth"}


@pytest.mark.parametrize("kind", BEST)
def test_trains_measures_and_goes_on(kind: str, data: Path, tmp_path: Path, capsys) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(data, whole, kind, "--vis")) == 0
    assert " tensors  patch_embed" in capsys.readouterr().out
    rows = [json.loads(line) for line in (whole / "log.txt").read_text().splitlines()]
    figures = {"SR": {"psnr", "ssim"}, "Seg": {"iou", "iou_columns"}}[kind] | {"mse"}
    assert [row["epoch"] for row in rows] == [0, 1] and figures < set(rows[0])
    assert list((whole / "best").glob(BEST[kind])) and (whole / "vis" / "0.jpg").is_file()
    assert main(words(data, parts, kind, "--max_steps", 1)) == 0
    assert main(words(data, parts, kind, "--auto_resume")) == 0
    same(load(parts / "checkpoint-1.pth")["model"], load(whole / "checkpoint-1.pth")["model"])
    capsys.readouterr()
    assert main(words(data, whole, kind, "--eval_only", "--model_path", whole / "checkpoint-1.pth")) == 0
    assert f"mse: {rows[1]['mse']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("SR", ["--eval_data_path", ""], "--eval_data_path"),
        ("Seg", ["--data_path", "/nowhere"], "/nowhere"),
        ("SR", ["--model", "pixel_vit_smal"], "pixel_vit_small"),
        ("SR", ["--model", "pixel_vit_small"], "patch_embed.proj.weight"),
        ("SR", ["--isrand_aug"], "augmentation"),
        ("SR", ["--eval_only"], "--model_path"),
        ("SR", ["--input_size", "30,128"], "multiple"),
        ("SR", ["--pretrained", "{data}/list.pth"], "no weights"),
        ("SR", ["--eval_only", "--model_path", "{data}/list.pth"], "no weights"),
    ],
)
def test_refusals(kind: str, more: list[str], told: str, data: Path, tmp_path: Path, capsys) -> None:
    assert main(words(data, tmp_path, kind, *(word.format(data=data) for word in more))) == 2
    error = capsys.readouterr().err
    assert told in error and (error.count("\n") == 1 or "tensors" in error)  # a table where weights do not fit


def test_flags_of_pretraining_are_told(data: Path, tmp_path: Path, capsys) -> None:
    parse_pixel(words(data, tmp_path, "SR", "--direction", "HF", "--dense_loss", "--compare"))
    assert "no effect (accepted for compatibility): --dense_loss --direction --compare" in capsys.readouterr().out


def test_encoders_of_others(tmp_path: Path) -> None:
    model = UniPixelViT("Seg", embed_dim=32, depth=1, num_heads=2, decoder_depth=1)
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    for key, prefix in (("model", "encoder."), ("student", "module.backbone."), ("state_dict", "")):
        content = {key: {prefix + name: tensor for name, tensor in state.items()}}
        torch.save(content, tmp_path / "encoder.pth")
        assert "blocks.0.attn.qkv.weight" in load_pixel_encoder(model, str(tmp_path / "encoder.pth")).kept
    assert torch.equal(model.norm.weight, state["norm.weight"])
    assert not torch.equal(model.decoder_pred.weight, state["decoder_pred.weight"])


def test_unreadable_pairs_are_counted_and_stop_no_evaluation(data: Path, tmp_path: Path, capsys) -> None:
    write_words(tmp_path / "sr", ["word"] * 3, broken=[1], size=(32, 128), pairs=True)
    model = UniPixelViT("SR", **VARIANTS["pixel_vit_micro_patch16x8"])
    figures = measure(
        model, evaluation_pairs("SR", "", str(tmp_path / "sr"), (32, 128)), "SR", 2, 0, torch.device("cpu")
    )
    assert figures["psnr"] > 0
    assert f"evaluation: 1 pairs skipped, first {tmp_path / 'sr'} 2: " in capsys.readouterr().out
