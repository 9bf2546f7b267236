"""transformers exchange keeps charset, case and lengths; shards and half precision are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common import cli
from common.errors import UserError
from common.train.checkpoint import load, load_hub_folder, save_atomic, write_card
from projects.mgpstr.convert import export_hf, import_hf
from projects.mgpstr.model.build import build_row, load_weights

NAME = "mgp_str_micro_patch16x8_3_32_128"
OPTIONS = {"character": "0123456789ABCXYZ", "sensitive": True, "batch_max_length": 9, "pad": False}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of capitals with its metadata, and the folder made of it."""
    root = tmp_path_factory.mktemp("exchange")
    torch.manual_seed(0)
    model = build_row("mgp-str", NAME, **OPTIONS)
    save_atomic(root / "plates.pth", {f"module.{name}": value for name, value in model.state_dict().items()})
    write_card(root / "plates.pth", f"mgpstr/{NAME}", OPTIONS)
    export_hf(root / "plates.pth", root / "hf")
    return root


def test_charset_case_and_length_come_back(exported: Path, tmp_path: Path) -> None:
    vocabulary = json.loads((exported / "hf/vocab.json").read_text())
    assert list(vocabulary) == ["[GO]", "[s]", *OPTIONS["character"]]
    assert json.loads((exported / "hf/config.json").read_text())["max_token_length"] == 11
    import_hf(exported / "hf", tmp_path / "back.pth")
    card = json.loads((tmp_path / "back.pth.json").read_text())
    assert card["model"] == f"mgpstr/{NAME}"
    assert card["options"] == {name: OPTIONS[name] for name in ("character", "sensitive", "batch_max_length")}
    load_weights(build_row("mgp-str", NAME, **OPTIONS), tmp_path / "back.pth")


def test_shards_and_half_precision(exported: Path, tmp_path: Path) -> None:
    whole = load(exported / "hf/model.safetensors")
    names = sorted(whole)
    half = len(names) // 2
    for folder, middle, kind in (("shards", "", torch.float32), ("half", ".fp16", torch.float16)):
        place = tmp_path / folder
        place.mkdir()
        for name in ("config", "vocab", "tokenizer_config"):
            (place / f"{name}.json").write_bytes((exported / f"hf/{name}.json").read_bytes())
        places = {}
        for number, part in enumerate((names[:half], names[half:]), 1):
            shard = f"model{middle}-{number:05d}-of-00002.safetensors"
            save_atomic(place / shard, {name: whole[name].to(kind) for name in part})
            places |= dict.fromkeys(part, shard)
        index = place / f"model.safetensors.index{middle}.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        import_hf(place, tmp_path / f"{folder}.pth")
        weight = load(tmp_path / f"{folder}.pth")["module.mgp_str.blocks.1.attn.qkv.weight"]
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, whole["mgp_str.encoder.blocks.1.attn.qkv.weight"], rtol=1e-3, atol=1e-5)
    single = tmp_path / "single"
    single.mkdir()
    save_atomic(single / "model.fp16.safetensors", {name: value.half() for name, value in whole.items()})
    assert set(load_hub_folder(single)) == set(whole)
    (tmp_path / "shards/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="no such checkpoint file"):
        load_hub_folder(tmp_path / "shards")
    with pytest.raises(UserError, match="no weights in it"):
        load_hub_folder(exported)


def test_what_does_not_fit_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--character has 2 characters, its head 16"):
        export_hf(exported / "plates.pth", tmp_path / "hf", "ab")
    model = build_row("mgp-str", NAME, granularities="char-bpe")
    save_atomic(tmp_path / "two.pth", model.state_dict())
    with pytest.raises(UserError, match="no head for wp"):
        export_hf(tmp_path / "two.pth", tmp_path / "hf")
    other = tmp_path / "other"
    other.mkdir()
    for path in (exported / "hf").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_attention_heads": 8}))
    with pytest.raises(UserError, match=r"8 heads.*no model here has these sizes"):
        import_hf(other, tmp_path / "x.pth")
    (other / "config.json").write_text(json.dumps(config))
    (other / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"without vocab\.json the 36 characters are meant"):
        import_hf(other, tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_nothing_is_overwritten(exported: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "back.pth"
    words = ["convert", "mgpstr", str(exported / "hf"), str(target), "--to", "original"]
    assert cli.main(words) == 0
    assert cli.main(words) == 2 and "back.pth: exists" in capsys.readouterr().err
    assert cli.main([*words, "--force"]) == 0
    assert cli.main(["convert", "mgpstr", str(target), str(exported / "hf"), "--to", "hf"]) == 2
