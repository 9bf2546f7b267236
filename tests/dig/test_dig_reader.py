"""DiG through the shared tools: reader, card, evaluation, export; the report's own sections."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.infer.export import check, drawn_words, export
from common.infer.recognizer import open_recognizer
from common.report.page import Report
from common.train.checkpoint import write_card
from projects.dig import report
from projects.dig.model.masking import RandomMasking
from projects.dig.model.pretraining import build_pretrainer
from projects.dig.model.recogniser import build_recogniser
from projects.dig.optim import step_table
from projects.dig.reader import GreedyModule
from tests.common.lmdbs import noise

MODEL = "simmim_vit_micro_patch8_32x128"


def checkpoint(folder: Path, **options) -> Path:
    """A recogniser with random weights, in the published form."""
    torch.manual_seed(0)
    model = build_recogniser(MODEL, decoder_name="micro_tf_decoder", **options)
    path = folder / "checkpoint-0.pth"
    torch.save({"model": model.state_dict(), "epoch": 0}, path)
    return path


@pytest.mark.parametrize("options", [{}, {"one_row": True}, {"decoder_type": "attention"}, {"conditioned": True}])
def test_reader_opens_a_checkpoint_by_its_tensors(options: dict, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, max_len=7, **options)
    write_card(path, f"dig/{MODEL}", {"max_len": 7, "one_row": options.get("one_row", False), "image_size": [32, 128]})
    recognizer = open_recognizer(path, device="cpu")
    words = recognizer([noise(0), noise(1, 30, 90)], attention=True)
    assert all(0 <= word.confidence <= 1 and len(word.text) <= 7 for word in words)
    shape = (1, 16) if options.get("one_row") else (4, 16)
    assert all(word.attention.shape == (len(word.text), *shape) for word in words)
    assert [word.text for word in recognizer([noise(0), noise(1, 30, 90)])] == [word.text for word in words]


def test_reader_needs_only_the_name_of_a_published_file(tmp_path: Path) -> None:
    recognizer = open_recognizer(checkpoint(tmp_path), model=f"dig/{MODEL}", device="cpu")
    assert recognizer.reader.model.max_len == 25


def test_pretrained_checkpoint_is_no_reader(tmp_path: Path) -> None:
    model = build_pretrainer("pretrain_simmim_ori_vit_micro_patch8_32x128")
    torch.save({"model": model.state_dict()}, tmp_path / "pre.pth")
    with pytest.raises(UserError, match="--finetune"):
        open_recognizer(tmp_path / "pre.pth", model=f"dig/{MODEL}", device="cpu")


def test_export_form_reads_the_same(tmp_path: Path) -> None:
    recognizer = open_recognizer(
        checkpoint(tmp_path, max_len=6), model=f"dig/{MODEL}", device="cpu", options={"max_len": 6}
    )
    images = torch.from_numpy(np.stack([recognizer.fit(noise(i)) for i in range(3)]))
    module, decode = recognizer.reader.export_module()
    assert isinstance(module, GreedyModule)
    with torch.no_grad():
        outputs = [part.numpy() for part in module(images)]
    assert [one.text for one in decode(outputs)] == [one.text for one in recognizer.read_batch(images)]


@pytest.mark.parametrize("options", [{}, {"decoder_type": "attention"}])
def test_exported_graph_reads_the_same_at_any_batch_size(options: dict, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = checkpoint(tmp_path, max_len=5, **options)
    recognizer = open_recognizer(path, f"dig/{MODEL}", "cpu", {"max_len": 5})
    assert check(recognizer, export(recognizer), drawn_words(recognizer)) < 1e-3


def test_reconstructions_keep_what_was_seen() -> None:
    model = build_pretrainer("pretrain_simmim_moco_ori_vit_micro_patch8_32x128", mlp_dim=16, dim=8).eval()
    images = np.stack([noise(i, 32, 128) for i in range(2)])
    for (masked, predicted, target), image in zip(report.reconstruct(model, images, 0.7), images):
        np.testing.assert_array_equal(target, image)
        seen = (masked == image).all(-1)
        assert 0.25 < seen.mean() < 0.4
        np.testing.assert_array_equal(predicted[seen], image[seen])


def test_report_compares_both_runs(tmp_path: Path) -> None:
    for name, accuracy in (("finetune", 60.0), ("scratch", 42.0)):
        (tmp_path / name).mkdir()
        rows = [{"step": s, "loss": 9.0 / s} for s in (1, 2, 3)] + [{"step": 3, "accuracy": accuracy, "val_loss": 1.0}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Report("x")
    report.compare(page, tmp_path)
    html, _ = page.write(tmp_path)
    text = html.read_text()
    assert "pre-trained" in text and "from scratch" in text
    assert "Here pre-training helps: +18.0 points" in text


def test_batch_masks_hide_the_same_number_everywhere() -> None:
    masking = RandomMasking((8, 32), 0.7)
    masks = masking.batch(np.random.default_rng(0), 5)
    assert masks.shape == (5, 2, 256) and (masks.sum(-1) == 179).all()
    assert not np.array_equal(masks[0, 0], masks[0, 1])


def test_warm_up_of_steps_needs_no_epochs_of_warm_up() -> None:
    table = step_table(1.0, 0.0, 2, 10, warmup_epochs=0, warmup_steps=5)
    assert len(table) == 20 and table[0] == 0 and table[4] == 1


@pytest.mark.parametrize("name", ["regular", "conv", "no_patchtrans"])
def test_patch_heads_train(name: str) -> None:
    """Every head gives a finite loss, gradients, and moves the momentum branch."""
    from projects.dig.model.encoder import EncoderSize
    from projects.dig.model.pretraining import MoCoViT

    torch.manual_seed(0)
    size = EncoderSize(16, 2, depth=1, patch=4, pixel_hidden=16)
    model = MoCoViT(size, dim=8, mlp_dim=16, temperature=0.2, windows=4, patchnet_name=name).train()
    first, second = torch.rand(2, 5, 3, 32, 128) * 2 - 1
    mask = torch.from_numpy(RandomMasking((8, 32), 0.7).batch(np.random.default_rng(0), 5))
    with torch.no_grad():
        model.encoder.blocks[0].mlp.fc1.weight += 1
    before = model.momentum_encoder.blocks[0].mlp.fc1.weight.clone()
    output = model(first, second, mask, 0.9)
    (output.contrast + sum(pixel.mean() for pixel in output.pixels)).backward()
    assert torch.isfinite(output.contrast) and model.encoder.mask_token.grad is not None
    torch.testing.assert_close(model.momentum_encoder.blocks[0].mlp.fc1.weight, before + 0.1)
    model.eval()
    kept = model.momentum_encoder.blocks[0].mlp.fc1.weight.clone()
    model(first, second, mask, 0.9)
    assert torch.equal(kept, model.momentum_encoder.blocks[0].mlp.fc1.weight)
