"""Fine-tuning at its smallest: the run and its files, exact resuming, starting points, tables, reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.data.bad import BadSample, BadSamples, stored
from common.errors import UserError
from common.infer.recognizer import open_recognizer
from common.train.checkpoint import load
from projects.ssm import weights
from projects.ssm.finetune.files import open_model, parse_model_args
from projects.ssm.finetune.run import run
from projects.ssm.finetune.test import main as measure
from projects.ssm.model.build import build_recogniser
from projects.ssm.model.pretrainer import build_pretrainer
from tests.common.compare import same
from tests.common.lmdbs import encoded, noise
from tests.runs import disturbed
from tests.ssm.runs import configuration, write_corpus

SMALL = {"img_size": (32, 128), "patch_size": (16, 8), "enc_embed_dim": 32, "enc_num_heads": 2, "enc_depth": 1,
         "dec_embed_dim": 32, "dec_num_heads": 2, "dec_depth": 1}  # fmt: skip
LOWER, SOME = "0123456789abcdefghijklmnopqrstuvwxyz", "abcde!"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("ssm"))


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finetune")
    run(configuration(corpus), out)
    return out / "checkpoints"


def test_files_of_a_run(trained: Path) -> None:
    names = {path.name for path in trained.glob("*.ckpt")}
    assert "last.ckpt" in names and any(name.startswith("epoch=0-step=2-val_accuracy=") for name in names)
    content = load(trained / "last.ckpt")
    assert "encoder.patch_embed.proj.weight" in content["state_dict"] and content["global_step"] == 8
    rows = [json.loads(line) for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_accuracy" in row] == [2, 4, 6, 8]


def test_resumes_exactly_inside_an_epoch(corpus: Path, trained: Path, tmp_path: Path) -> None:
    middle = next(path for path in trained.glob("epoch=*.ckpt") if load(path)["global_step"] in (2, 6))
    copied = tmp_path / "checkpoints" / "middle.ckpt"
    copied.parent.mkdir()
    copied.write_bytes(middle.read_bytes())
    listed, earlier = tmp_path / "bad_samples.csv", [BadSample("words", 5, "broken")]
    BadSamples(1000, file=listed).add(earlier)
    run(configuration(corpus, f"ckpt_path={copied}"), tmp_path)
    ours, theirs = load(tmp_path / "checkpoints" / "last.ckpt"), load(trained / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(ours[key], theirs[key], key)
    assert stored(listed) == earlier and not (trained.parent / listed.name).exists()


@pytest.mark.parametrize("where", ["input", "gradient"])
def test_nothing_is_stepped_after_nan(where: str, corpus: Path, tmp_path: Path) -> None:
    what = "loss" if where == "input" else "gradient norm"
    with disturbed.not_finite(where, after=2) as steps, pytest.raises(UserError, match=f"{what} .*nothing was stepped"):
        run(configuration(corpus), tmp_path)
    assert steps == [2] and load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2
    (note,) = tmp_path.glob("non_finite_*.json")
    content = json.loads(note.read_text())
    assert content["batch"] and content["what"] == what


def test_tables_and_reading(corpus: Path, trained: Path, tmp_path: Path, capsys) -> None:
    checkpoint = trained / "last.ckpt"
    words = [str(checkpoint), "--data_root", str(corpus), "--num_workers", "0", "--device", "cpu"]
    assert measure([*words, "max_label_length:int=25"]) == 0
    text = capsys.readouterr().out
    assert "Additional keyword arguments: {'max_label_length': 25" in text and "| Combined |        10 |" in text
    log = Path(f"{checkpoint}.log.txt").read_text()
    assert log.startswith("Benchmark (Subset) set:\n| Dataset  | # samples |") and log in text
    (tmp_path / "a.png").write_bytes(encoded(noise(0)))
    (found,) = open_recognizer(checkpoint, device="cpu")([tmp_path / "a.png"])
    assert isinstance(found.text, str) and found.error is None


def test_test_without_sets(corpus: Path, trained: Path, tmp_path: Path, capsys) -> None:
    assert measure([str(trained / "last.ckpt"), "--data_root", str(tmp_path), "--device", "cpu"]) == 2
    assert "--data_root" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["lr", "lr=1", "lr:complex=1", "x:int=one", ":int=1"])
def test_malformed_arguments(word: str) -> None:
    with pytest.raises(UserError, match=r"model arguments|is no int"):
        parse_model_args([word])


def recogniser(charset: str = LOWER, **more) -> torch.nn.Module:
    return build_recogniser("TransOCR", charset, {**SMALL, **more})


def pretrained(path: Path, form: str) -> tuple[Path, dict]:
    encoder = recogniser().encoder.state_dict()
    encoder = {name: torch.randn_like(tensor) for name, tensor in encoder.items()}
    if form == "ssm":
        model = build_pretrainer("ssm_micro_patch16x8", embed_dim=32, depth=1, num_heads=2, mlp_dim=8)
        content = {"model": {**model.state_dict(), **encoder}, "epoch": 1}
    elif form == "dig":
        content = {
            "model": {f"encoder.{name}": tensor for name, tensor in encoder.items()} | {"mask_token": torch.ones(1)}
        }
    else:
        content = {"state_dict": {f"backbone.{name}": tensor for name, tensor in encoder.items()}}
    torch.save(content, path)
    return path, encoder


@pytest.mark.parametrize("form", weights.FORMATS)
def test_encoders_are_known_by_their_names(form: str, tmp_path: Path, capsys) -> None:
    # a folder called dig or sdr chose the wrong branch in the published code
    folder = tmp_path / "dig-sdr"
    folder.mkdir()
    path, encoder = pretrained(folder / "union14m.pth", form)
    model = recogniser()
    own = model.encoder.pos_embed.detach().clone()
    report = weights.load_encoder(model, str(path))
    assert [name for name in report.missing if name.startswith("encoder.")] == ["encoder.pos_embed"]
    assert torch.equal(model.encoder.norm.weight, encoder["norm.weight"])
    assert torch.equal(model.encoder.pos_embed, own)
    told = capsys.readouterr().out
    assert f"({form} form):" in told and "kept" in told


def test_encoder_that_does_not_fit(tmp_path: Path) -> None:
    path, _ = pretrained(tmp_path / "x.pth", "ssm")
    with pytest.raises(UserError, match="enc_embed_dim"):
        weights.load_encoder(recogniser(enc_embed_dim=64, dec_embed_dim=64), str(path))
    torch.save({"model": {"foo": torch.ones(1)}}, path)
    with pytest.raises(UserError, match="14 needed tensors do not fit"):
        weights.load_encoder(recogniser(), str(path))


def test_charset_is_remapped_by_character(tmp_path: Path) -> None:
    first, second = recogniser(LOWER), recogniser(SOME, max_label_length=10)
    path = tmp_path / "first.ckpt"
    torch.save({"state_dict": first.state_dict(), "hyper_parameters": {"charset_train": LOWER}}, path)
    untouched = second.head.weight[SOME.index("!") + 1].detach().clone()
    report = weights.load_recogniser(second, SOME, str(path))
    for place, character in enumerate("abcde"):
        assert torch.equal(second.head.weight[place + 1], first.head.weight[LOWER.index(character) + 1])
    assert torch.equal(second.head.weight[0], first.head.weight[0])
    assert torch.equal(second.text_embed.embedding.weight[-2:], first.text_embed.embedding.weight[-2:])
    assert torch.equal(second.head.weight[-1], untouched)
    assert torch.equal(second.pos_queries, first.pos_queries[:, :11])
    assert report.tokens[0] == ["[end]", *"abcde"] and report.tokens[1] == ["!"] and len(report.tokens[2]) == 31


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    other = build_recogniser("CRNN", LOWER, {"hidden_size": 16})
    torch.save({"state_dict": other.state_dict(), "hyper_parameters": {"charset_train": LOWER}}, path)
    with pytest.raises(UserError, match=r"do not fit|another model"):
        weights.load_recogniser(recogniser(), LOWER, str(path))
    with pytest.raises(UserError, match="nothing is downloaded"):
        weights.local("parseq-tiny")


def test_encoder_kind_comes_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "split.ckpt"
    hyper = {**SMALL, "class": "TransOCR", "charset_train": LOWER, "standard": True}
    torch.save({"state_dict": recogniser(standard=False).state_dict(), "hyper_parameters": hyper}, path)
    assert open_model(path)[1]["standard"] is False


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root_dir"):
        run(configuration(tmp_path), tmp_path / "out")
