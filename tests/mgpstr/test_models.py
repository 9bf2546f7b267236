"""MGP-STR and ACDS-STR: the short cuts equal the plain formulas; charsets, freezing, start weights, exchange."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.data.loader import Batch
from common.errors import UserError
from common.infer.recognizer import Recognizer
from projects.mgpstr import evaluate
from projects.mgpstr.bench import plain_a3, plain_logits
from projects.mgpstr.convert import export_hf, import_hf
from projects.mgpstr.evaluate import read_batch
from projects.mgpstr.label_codes import LabelCodes
from projects.mgpstr.model.a3 import aggregate
from projects.mgpstr.model.build import build_model, build_row, load_weights, start_model
from projects.mgpstr.model.mgp_str import decode_top1
from projects.mgpstr.reader import MgpReader, open_reader
from projects.mgpstr.sheets import demo_sheet

MICRO = ("mgp-str", "mgp_str_micro_patch16x8_3_32_128")
CODES = LabelCodes("0123456789abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def micro() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(*MICRO).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # norms and biases away from 1 and 0
    return model


def test_a3_in_one_pass_equals_the_paper(micro) -> None:
    tokens = torch.randn(3, 33, 128)
    modules = [getattr(micro.mgp_str, f"{name}_tokenLearner") for name in micro.granularities]
    for module, attention, features in zip(modules, *aggregate(modules, tokens)):
        wanted_attention, wanted = plain_a3(module, tokens)
        torch.testing.assert_close(attention, wanted_attention, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)


def test_gathered_losses_equal_dense_ones(micro) -> None:
    images = torch.rand(4, 3, 32, 128)
    targets = {name: torch.from_numpy(ids) for name, ids in CODES.encode(["a", "word", "2024", ""]).items()}
    losses, logits = micro.losses(images, targets), plain_logits(micro, images)
    for name, loss in losses.items():
        wanted = F.cross_entropy(logits[name].flatten(0, 1), targets[name].flatten(), ignore_index=0)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


def test_decoding_in_runs_equals_decoding_everything() -> None:
    torch.manual_seed(1)
    head, tokens = torch.nn.Linear(5, 7), torch.randn(40, 26, 5)
    probs, ids = head(tokens).softmax(-1).max(-1)
    stopped = decode_top1(tokens, head, end=2, strides=(3, 5, 100))
    for row in range(40):
        ends = (ids[row] == 2).nonzero().flatten().tolist()
        until = ends[0] + 1 if ends else 26
        assert torch.equal(stopped.ids[row, :until], ids[row, :until])
        torch.testing.assert_close(stopped.probs[row, :until], probs[row, :until])
        later = stopped.ids[row, until:] == ids[row, until:]
        assert ((stopped.probs[row, until:] == 0) | later).all()


@pytest.mark.parametrize("name", ["mgp_str_micro_patch16x8_3_32_128", "char_str_micro_patch16x8_3_32_128"])
def test_everything_trained_gets_a_gradient(name: str) -> None:
    model = build_model("char-str" if name.startswith("char") else "mgp-str", name)
    codes = LabelCodes("ab", 3, model.granularities)
    model = build_model("char-str" if name.startswith("char") else "mgp-str", name, 4, 5)
    targets = {key: torch.from_numpy(ids) for key, ids in codes.encode(["ab", "a"]).items()}
    sum(model.losses(torch.rand(2, 3, 32, 128), targets).values()).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


def test_acds_of_any_charset_and_length() -> None:
    model = build_model("ACDS-STR-Micro", num_classes=96, length=12)
    targets = {"char": torch.randint(0, 96, (2, 12))}
    losses = model.losses(torch.rand(2, 3, 32, 128), targets, torch.randint(0, 2, (2, 32, 128)))
    sum(losses.values()).backward()
    assert set(losses) == {"char", "mask"}
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    reading = model.eval().read(torch.rand(2, 3, 32, 128))
    assert torch.isfinite(model.character_loss(reading, targets["char"]))
    assert reading.decoded["char"].ids.shape == (2, 11) and reading.maps["map"].shape == (2, 32, 128)


@pytest.mark.parametrize("method, name", [("ACDS-STR-Nano", ""), ("char-str", "char_str_micro_patch16x8_3_32_128")])
def test_small_models_read_narrow_pictures(method: str, name: str) -> None:
    model = build_row(method, name, "ab", batch_max_length=3, imgW=64)
    masks = (torch.zeros(2, 32, 64),) if method.startswith("ACDS") else ()
    losses = model.losses(torch.rand(2, 3, 32, 64), {"char": torch.ones(2, 5, dtype=torch.long)}, *masks)
    assert torch.isfinite(sum(losses.values()))
    reader = MgpReader(model.eval(), LabelCodes("ab", 3, model.granularities), torch.device("cpu"), image_size=(32, 64))
    recognizer = Recognizer(reader)
    assert recognizer.image_size == (32, 64)
    assert len(recognizer([np.zeros((20, 60, 3), dtype=np.uint8)])) == 1


def test_freezing_leaves_conv_fpn_and_layer5() -> None:
    with torch.device("meta"):
        model = build_model("ACDS-STR-Small")
    published = 61_065_781 - 55_714_837  # parameters that --freeze takes away
    model.freeze_map_branch()
    backbone = model.acds_str.cnnBackbone
    frozen = [parameter for parameter in backbone.parameters() if not parameter.requires_grad]
    assert sum(parameter.numel() for parameter in frozen) == published and len(frozen) == 135
    assert model.train().acds_str.cnnBackbone.layer1.training
    model.freeze_map_branch(statistics=True)
    model.train()
    assert not backbone.layer1.training and backbone.layer5.training


@pytest.mark.parametrize(
    ("name", "whole", "with_freeze"),
    [("ACDS-STR-Small", 61_065_781, 55_714_837), ("ACDS-STR-Base", 89_417_269, 84_066_325)],
)
def test_parameters_that_opt_txt_counts(name: str, whole: int, with_freeze: int) -> None:
    for wish, count in ((False, whole), (True, with_freeze)):
        with torch.device("meta"):
            model = build_model(name)
        frozen = model.freeze_map_branch() if wish else 0
        assert sum(parameter.numel() for parameter in model.parameters()) - frozen == count


def test_only_the_forward_is_timed(micro, monkeypatch) -> None:
    """Decoding and the loss take a second here; the model does not."""
    decode, loss = evaluate.fuse, micro.character_loss

    def slow(function):
        return lambda *words: (time.sleep(0.5), function(*words))[1]

    monkeypatch.setattr(evaluate, "fuse", slow(decode))
    monkeypatch.setattr(micro, "character_loss", slow(loss))
    batch = Batch(torch.zeros(1, 32, 128, 3, dtype=torch.uint8), ["cat"], torch.arange(1))
    micro.read(torch.zeros(1, 3, 32, 128))  # what the first call alone needs
    started = time.perf_counter()
    result = evaluate.evaluate(micro, CODES, [batch], torch.device("cpu"))
    assert 0 < result.seconds < time.perf_counter() - started - 1 and result.loss_sum > 0 and result.bad == []


def test_start_weights_fill_the_encoder_only(tmp_path: Path) -> None:
    model = build_model("char-str", "char_str_micro_patch16x8_3_32_128")
    own = model.mgp_str.state_dict()
    encoder = {k: torch.full_like(v, 0.5) for k, v in own.items() if k.startswith(("cls_token", "blocks.", "norm."))}
    others = {name: torch.zeros(3) for name in ("patch_embed.proj.weight", "pos_embed", "head.weight", "dist_token")}
    torch.save({"model": {**encoder, **others}}, tmp_path / "deit.pth")
    note, warnings = start_model(model, "x", str(tmp_path / "deit.pth"), download=False)
    assert f"{len(encoder)} tensors" in note and warnings == []
    assert (model.mgp_str.blocks[0].attn.qkv.weight == 0.5).all() and not (model.mgp_str.pos_embed == 0.5).any()
    torch.save({"model": {k: v for k, v in encoder.items() if "blocks.3" not in k}}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"blocks\.3"):
        start_model(model, "x", str(tmp_path / "short.pth"), download=False)
    with pytest.raises(UserError, match="ACDS-STR has no published start weights"):
        start_model(build_model("ACDS-STR-Micro"), "x", str(tmp_path / "deit.pth"), download=False)


def test_published_prefix_and_wrong_charset(tmp_path: Path) -> None:
    model = build_model("char-str", "char_str_micro_patch16x8_3_32_128")
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path / "a.pth")
    load_weights(build_model("char-str", "char_str_micro_patch16x8_3_32_128"), tmp_path / "a.pth")
    names = {
        f"_orig_mod.module.{k.replace('mgp_str.', 'mgp_str._orig_mod.', 1)}": v for k, v in model.state_dict().items()
    }
    torch.save(names, tmp_path / "compiled.pth")
    load_weights(build_model("char-str", "char_str_micro_patch16x8_3_32_128"), tmp_path / "compiled.pth")
    with pytest.raises(UserError, match="charset: it has 36 characters, this model 94"):
        load_weights(build_model("char-str", "char_str_micro_patch16x8_3_32_128", 96), tmp_path / "a.pth")


def test_reader_predictions_and_sheets(micro) -> None:
    reader = MgpReader(micro, CODES, torch.device("cpu"))
    crops = list(np.random.default_rng(0).integers(0, 256, (3, 20, 60, 3), dtype=np.uint8))
    recognizer = Recognizer(reader, batch_size=2)
    for prediction in recognizer(crops, attention=True):
        assert set(prediction.extra) == {"char", "bpe", "wp", "winner", "maps", "tokens"}
        assert prediction.extra["maps"]["bpe"].shape == (26, 2, 16)
        assert demo_sheet(recognizer.fit(crops[0]), prediction).ndim == 3
    module, decode = reader.export_module()
    batch = torch.from_numpy(np.stack([recognizer.fit(crop) for crop in crops]))
    with torch.no_grad():
        outputs = [output.numpy() for output in module(batch)]
    for exported, read in zip(decode(outputs), recognizer(crops)):
        assert exported.text == read.text and exported.confidence == pytest.approx(read.confidence, rel=1e-4)


def test_transformers_reads_the_same_strings(micro, tmp_path: Path) -> None:
    """A hundred crops: our checkpoint, converted, in transformers; and the way back."""
    from transformers import MgpstrForSceneTextRecognition

    # an untrained model never ends a word: make the end likely in every head
    for name, end, more in (("char", 1, 2.0), ("bpe", 2, 6.0), ("wp", 102, 6.0)):
        micro.mgp_str.get_submodule(f"{name}_head").bias.data[end] += more
    torch.save({f"module.{k}": v for k, v in micro.state_dict().items()}, tmp_path / "ours.pth")
    export_hf(tmp_path / "ours.pth", tmp_path / "hf")
    theirs = MgpstrForSceneTextRecognition.from_pretrained(tmp_path / "hf").eval()
    import_hf(tmp_path / "hf", tmp_path / "back.pth")
    options = {"transformer": MICRO[0], "model": MICRO[1]}
    back = open_reader(tmp_path / "back.pth", options, torch.device("cpu"))
    crops = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (100, 32, 128, 3), dtype=np.uint8))
    fused, _ = read_batch(micro, CODES, crops)
    assert [one.text or "" for one in fused] == [prediction.text for prediction in back.read(crops)]
    theirs_ids = {name: [] for name in CODES}
    with torch.no_grad():
        for some in crops.split(20):
            logits = theirs(some.permute(0, 3, 1, 2).float() / 255).logits
            for name, scores in zip(CODES, logits):
                theirs_ids[name].append(scores[:, 1:].argmax(-1))
    for name in CODES:
        ids = torch.cat(theirs_ids[name]).numpy()
        texts = [one.text for one in CODES[name].decode(ids, np.ones(ids.shape, np.float32))]
        ours = [one.candidates[name] for one in fused]
        ended = [one.confidence > 0 for one in ours]
        assert sum(ended) > 10, name
        assert [t for t, e in zip(texts, ended) if e] == [o.text for o, e in zip(ours, ended) if e], name
