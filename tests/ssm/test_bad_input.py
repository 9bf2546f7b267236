"""Bad input to the fine-tuning scripts: one line that names file, field and fix, status 2."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import torch

from common.train.checkpoint import save_atomic
from projects.ssm.finetune import train
from projects.ssm.finetune.test import main as measure
from projects.ssm.model.build import build_recogniser
from tests.common.lmdbs import write_words
from tests.ssm.runs import MICRO, finetune, write_corpus

LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"


class Malicious:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus; damaged and foreign checkpoints next to it."""
    root = write_corpus(tmp_path_factory.mktemp("bad"))
    options = {**MICRO, "img_size": [32, 128], "max_label_length": 25}
    model = build_recogniser("TransOCR", LOWER, options)
    good = save_atomic(root / "good.ckpt", {"state_dict": model.state_dict(), "hyper_parameters": {
        **options, "charset_train": LOWER, "class": "TransOCR"}})  # fmt: skip
    (root / "cut.ckpt").write_bytes(Path(good).read_bytes()[:1000])
    with open(root / "evil.ckpt", "wb") as file:
        pickle.dump(Malicious(root / "mark"), file)
    other = build_recogniser("CRNN", LOWER, {"hidden_size": 16})
    torch.save({"state_dict": other.state_dict(), "hyper_parameters": {"charset_train": LOWER}}, root / "crnn.ckpt")
    content = {"pytorch-lightning_version": "2.5.0", "global_step": 1, "epoch": 0, "loops": {}, "optimizer_states": []}
    torch.save({**content, "state_dict": other.state_dict()}, root / "run.ckpt")
    torch.save([1, 2], root / "list.ckpt")
    (root / "text.ckpt").write_text("no checkpoint")
    (root / "empty").mkdir()
    (root / "published" / "train").mkdir(parents=True)
    write_words(root / "marks" / "training" / "MJ", ["!!", "??"])
    (root / "file").write_text("")
    return root


START = ["model.encoder_pretrained=true"]
CASES = [
    (["dataset=rael"], ["rael", "real"]),
    (["+experiment=cpu-micor"], ["cpu-micor", "cpu-micro"]),
    (["charset=36_lower"], ["36_lowercase"]),
    (["model.lr=fast"], ["model.lr", "fast"]),
    (["trainer.max_epochs=many"], ["trainer", "max_epochs"]),
    (["trainer.devices=-7"], ["trainer"]),
    (["trainer.max_epochs=-1"], ["trainer.max_epochs", "trainer.max_steps"]),
    (["trainer.val_check_interval=0"], ["trainer.val_check_interval"]),
    (["trainer.max_epoch=3"], ["max_epoch", "max_epochs"]),
    (["+trainer.max_epoch=3"], ["max_epoch"]),
    (["model.patch_size=[7,8]"], ["patch"]),
    (["model.enc_num_heads=3"], ["heads"]),
    (["model.img_size=32"], ["model.img_size"]),
    (["model.patch_size=[0,8]"], ["model.patch_size"]),
    (["model.lr=-1"], ["model.lr"]),
    (["model.lr=0"], ["model.lr"]),
    (["model.warmup_pct=1.5"], ["model.warmup_pct"]),
    (["seed=-1"], ["seed"]),
    (["model.dropout=much"], ["dropout"]),
    (["model.enc_depth=0"], ["model.enc_depth"]),
    (["model.max_label_length=-2"], ["model.max_label_length"]),
    (["model.enc_depth=two"], ["enc_depth"]),
    (["model.max_label_length=long"], ["max_label_length"]),
    (["data.root_dir={root}/nowhere"], ["data.root_dir", "nowhere"]),
    (["data.root_dir={root}/published"], ["train/synth"]),
    (["data.root_dir={root}/published", "dataset=Union"], ["Union/train_union"]),
    (["data.root_dir={root}/empty"], ["empty"]),
    (["data.root_dir={root}/marks"], ["no usable sample", "charset"]),
    (["ckpt_path={root}/nowhere.ckpt"], ["ckpt_path", "nowhere.ckpt"]),
    (["ckpt_path={root}/cut.ckpt"], ["cut.ckpt"]),
    (["ckpt_path={root}/good.ckpt"], ["good.ckpt", "pretrained="]),
    (["ckpt_path={root}/run.ckpt"], ["ckpt_path", "another model", "pretrained="]),
    (["pretrained={root}/nowhere.ckpt"], ["nowhere.ckpt"]),
    (["pretrained={root}/cut.ckpt"], ["cut.ckpt"]),
    (["pretrained={root}/evil.ckpt"], ["evil.ckpt", "refused"]),
    (["pretrained={root}/text.ckpt"], ["text.ckpt"]),
    (["pretrained={root}/list.ckpt"], ["list.ckpt", "no weights"]),
    (["ckpt_path={root}/list.ckpt"], ["list.ckpt", "pretrained="]),
    (["pretrained={root}/crnn.ckpt"], ["crnn.ckpt", "another model"]),
    (["pretrained=parseq-tiny"], ["parseq-tiny", "path"]),
    (START, ["model.encoder_checkpoint"]),
    ([*START, "model.encoder_checkpoint={root}/nowhere.pth"], ["nowhere.pth"]),
    ([*START, "model.encoder_checkpoint={root}/crnn.ckpt"], ["crnn.ckpt"]),
    ([*START, "model.encoder_checkpoint={root}/list.ckpt"], ["list.ckpt", "no weights"]),
    ([*START, "model.encoder_checkpoint={root}/good.ckpt", "model.encoder_format=sms"], ["encoder_format", "ssm"]),
    (["hydra.run.dir={root}/file/x"], ["file"]),
    (["hydra.run.dir=/proc/nowhere"], ["/proc/nowhere"]),
]  # fmt: skip


@pytest.mark.parametrize(("more", "told"), CASES, ids=lambda value: value[-1].replace("{root}/", ""))
def test_train(more: list[str], told: list[str], place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's log still writes to an earlier test's stderr
    words = finetune(place, f"hydra.run.dir={tmp_path}/out", *(word.format(root=place) for word in more))
    assert train.main(words) == 2
    text = capsys.readouterr().err  # with Lightning's remarks about the machine
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert all(part in line for part in told), line
    assert "Traceback" not in text and "Error executing" not in text
    assert not (place / "mark").exists() and not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{root}/nowhere.ckpt"], ["nowhere.ckpt"]),
        (["{root}/cut.ckpt"], ["cut.ckpt"]),
        (["{root}/evil.ckpt"], ["evil.ckpt", "refused"]),
        (["{root}/good.ckpt", "--data_root", "{root}/empty"], ["--data_root"]),
        (["{root}/good.ckpt", "enc_depth:int=7"], ["good.ckpt", "blocks"]),
        (["{root}/good.ckpt", "charset_train:str=abc"], ["good.ckpt"]),
        (["{root}/good.ckpt", "enc_depth:number=7"], ["enc_depth:number=7"]),
        (["{root}/good.ckpt", "--batch_size", "0"], ["--batch_size"]),
        (["{root}/list.ckpt"], ["list.ckpt", "no weights"]),
        (["{root}/good.ckpt", "max_label_length:int=0"], ["max_label_length"]),
        (["{root}/good.ckpt", "--cased", "charset_test:str=abc"], ["charset_test"]),
        (["{root}/good.ckpt", "--device", "tpu"], ["tpu"]),
    ],
    ids=lambda value: value[-1].replace("{root}/", ""),
)
def test_test(words: list[str], told: list[str], place: Path, capsys) -> None:
    more = [] if "--device" in words else ["--device", "cpu"]
    given = ["--data_root", str(place), "--num_workers", "0", *(word.format(root=place) for word in words), *more]
    assert measure(given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in told), lines
    assert not (place / "mark").exists()
