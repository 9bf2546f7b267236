"""ONNX export and its check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common import cli
from common.errors import UserError
from common.infer import export
from common.infer.recognizer import Recognizer
from common.text.codecs import CtcCodec, EosBosPadCodec, EosPadUnkCodec, GlyphCodec, GoCodec
from tests.common import toy


@pytest.fixture
def recognizer() -> Recognizer:
    return Recognizer(toy.BrightnessReader(toy.Brightness(), torch.device("cpu")), batch_size=8)


def test_export_equals_torch_at_both_batch_sizes(recognizer: Recognizer) -> None:
    pytest.importorskip("onnxruntime")
    data = export.export(recognizer)
    assert export.check(recognizer, data, export.drawn_words(recognizer)) < 1e-4
    recognizer.reader.model.centres.data += 0.3
    with pytest.raises(UserError):
        export.check(recognizer, data, export.drawn_words(recognizer))


def test_outputs_that_are_no_numbers_fail_the_check(recognizer: Recognizer) -> None:
    pytest.importorskip("onnxruntime")
    recognizer.reader.model.centres.data.fill_(float("nan"))
    with pytest.raises(UserError, match="outputs differ by nan"):
        export.check(recognizer, export.export(recognizer), export.drawn_words(recognizer))


def test_export_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    toy.install(monkeypatch)
    checkpoint = toy.save_toy(tmp_path / "toy.pth")
    words = ["export", "--checkpoint", str(checkpoint), "--model", "toy/brightness", "--device", "cpu"]
    assert cli.main([*words, "--check"]) == 0
    assert "checked on 32 images" in capsys.readouterr().out
    facts = json.loads((tmp_path / "toy.onnx.json").read_text("utf-8"))
    assert facts["model"] == "toy/Brightness" and facts["input"]["shape"] == ["batch", 8, 16, 3]
    assert facts["outputs"] == [{"name": "output_0", "type": "float32", "shape": ["batch", 3]}]
    kept = onnxruntime.InferenceSession(tmp_path / "toy.onnx").get_modelmeta().custom_metadata_map
    assert kept["charset"] == facts["charset"] == "abc" and json.loads(kept["input"]) == facts["input"]
    (tmp_path / "toy.onnx").unlink()
    assert cli.main([*words, "--check", "--tolerance", "-1"]) == 2 and not (tmp_path / "toy.onnx").exists()
    assert cli.main([*words, "--opset", "99"]) == 2
    error = capsys.readouterr().err
    assert "--opset 99: the model cannot be exported" in error and "try --opset 18" in error


@pytest.mark.parametrize("codec, tokens", [
    (GlyphCodec("ab"), ["[end]", "a", "b"]), (GoCodec("ab"), ["[GO]", "[s]", "a", "b"]),
    (EosBosPadCodec("ab"), ["[E]", "a", "b", "[B]", "[P]"]), (CtcCodec("ab"), ["[blank]", "a", "b"]),
    (EosPadUnkCodec("ab"), ["a", "b", "[end]", "[pad]", "[unknown]"]), (None, []),
])  # fmt: skip
def test_an_exported_file_tells_every_token(codec: object, tokens: list[str]) -> None:
    assert export.tokens_of(codec) == tokens


def test_ids_are_compared_by_what_they_spell(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids after the end may differ as they like: no text changes by that."""
    pytest.importorskip("onnxruntime")

    class WithIds(torch.nn.Module):
        def __init__(self, model: torch.nn.Module, noise: int) -> None:
            super().__init__()
            self.model, self.noise = model, noise

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.model(images), images[:, 0, 0, 0].long() * 0 + self.noise

    reader = recognizer.reader
    monkeypatch.setattr(reader, "export_module", lambda: (WithIds(reader.model, 3), reader.decode))
    data = export.export(recognizer)
    monkeypatch.setattr(reader, "export_module", lambda: (WithIds(reader.model, 9), reader.decode))
    assert export.check(recognizer, data, export.drawn_words(recognizer)) < 1e-4
