"""The kinds of recognisers in SSM's suite as ONNX, at other batch sizes than the traced one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.infer.export import check, drawn_words, export
from common.infer.recognizer import open_recognizer
from common.text.charset import CHARSET_36
from projects.ssm.finetune.files import stock_arguments
from projects.ssm.model.build import build_recogniser

SHORT = {"charset_train": CHARSET_36, "img_size": [32, 128], "patch_size": [16, 8], "max_label_length": 5}
TRANSFORMER = {"enc_num_heads": 2, "enc_depth": 1, "dec_num_heads": 2, "dec_depth": 1}
SIZES = {
    "TransOCR": TRANSFORMER | {"enc_embed_dim": 32, "dec_embed_dim": 32},
    "PARSeq": TRANSFORMER | {"embed_dim": 32},
    "ViTSTR": {"embed_dim": 32, "num_heads": 2, "depth": 1},
    "CRNN": {"hidden_size": 16},
    "TRBA": {"hidden_size": 16},
    "ABINet": {},
}
FAST = ("TransOCR", "PARSeq", "ViTSTR", "CRNN")


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name not in FAST)]
)
def test_exported_graph_reads_the_same_at_any_batch_size(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    hyper = {"class": name, **SHORT, **SIZES[name]}
    model = build_recogniser(name, CHARSET_36, stock_arguments(name) | hyper)
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": hyper}, tmp_path / "random.ckpt")
    recognizer = open_recognizer(tmp_path / "random.ckpt", f"ssm/{name}", "cpu")
    assert check(recognizer, export(recognizer), drawn_words(recognizer)) < 1e-3
