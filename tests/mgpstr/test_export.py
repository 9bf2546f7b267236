"""The small forms of MGP-STR and ACDS-STR as ONNX, at other batch sizes than the traced one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common import registry
from common.infer.export import check, drawn_words, export
from common.infer.recognizer import open_recognizer


@pytest.mark.parametrize("name", ["mgpstr/mgp_str_micro_patch16x8_3_32_128", "mgpstr/ACDS-STR-Micro"])
def test_exported_graph_reads_the_same_at_any_batch_size(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    torch.save(registry.find(name).make().state_dict(), tmp_path / "random.pth")
    recognizer = open_recognizer(tmp_path / "random.pth", name, "cpu")
    assert check(recognizer, export(recognizer), drawn_words(recognizer)) < 1e-3
