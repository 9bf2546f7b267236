"""The HTTP server's answers, limits and faults; ONNX export and its check."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common import cli
from common.errors import UserError
from common.infer import export
from common.infer.recognizer import Recognizer
from common.serve.server import Server
from common.text.codecs import CtcCodec, EosBosPadCodec, EosPadUnkCodec, GlyphCodec, GoCodec
from tests.common import toy


@pytest.fixture
def recognizer() -> Recognizer:
    return Recognizer(toy.BrightnessReader(toy.Brightness(), torch.device("cpu")), batch_size=8)


@pytest.fixture
def server(recognizer: Recognizer) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), recognizer, "toy", max_bytes=20_000, max_images=3, max_waiting=4) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_it_reads_a_file_and_a_list(server: Server) -> None:
    status, answer = ask(server, "POST", "/read", toy.crop("b"))
    assert status == 200 and answer["predictions"][0]["text"] == "b"
    images = [base64.b64encode(data).decode() for data in (toy.crop("a"), b"broken", toy.crop("c"))]
    status, answer = ask(
        server, "POST", "/read", json.dumps({"images": images}).encode(), Content_Type="application/json"
    )
    assert status == 200 and [p["text"] for p in answer["predictions"]] == ["a", "", "c"]
    assert answer["predictions"][1]["error"]
    assert ask(server, "GET", "/health")[1]["status"] == "ok"


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"images": 3}', b'{"images": []}', b'{"images": ["?"]}', b"[" * 5000,
                                  json.dumps({"images": ["AAAA"] * 4}).encode()])  # fmt: skip
def test_a_malformed_body_is_refused(server: Server, body: bytes) -> None:
    status, answer = ask(server, "POST", "/read", body, Content_Type="application/json")
    assert status == 400 and answer["error"]


def test_limits(server: Server) -> None:
    assert ask(server, "POST", "/read", b"x" * 20_001)[0] == 413
    assert ask(server, "POST", "/read", b"")[0] == 411
    assert ask(server, "GET", "/etc/passwd")[0] == 404
    for length in (b"-5", b"\xb2", b"9" * 5000):  # a superscript two is a digit to str.isdigit and none to int
        with socket.create_connection(server.server_address[:2], timeout=5) as stream:
            stream.sendall(b"POST /read HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n")
            assert b"411" in stream.recv(100)


def test_limits_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--checkpoint", "x", "--max-waiting", "-9"]) == 2
    assert "--max-waiting: -9 must be at least 1" in capsys.readouterr().err


def test_a_fault_of_the_model_does_not_end_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = server.batcher.recognizer.reader
    monkeypatch.setattr(reader, "model", None)
    assert ask(server, "POST", "/read", toy.crop("a"))[0] == 503
    monkeypatch.undo()
    assert ask(server, "POST", "/read", toy.crop("a"))[0] == 200


def test_a_client_that_goes_away_is_no_news(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (BrokenPipeError, ValueError):
        try:
            raise error
        except error:
            server.handle_error(None, ("127.0.0.1", 1))
    shown = capsys.readouterr().err
    assert "ValueError" in shown and "BrokenPipeError" not in shown


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
