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

from common.errors import UserError
from common.infer import export
from common.infer.recognizer import Recognizer
from common.infer.serve import Server
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
    with socket.create_connection(server.server_address[:2], timeout=5) as stream:
        stream.sendall(b"POST /read HTTP/1.1\r\nContent-Length: -5\r\n\r\n")
        assert b"411" in stream.recv(100)


def test_a_fault_of_the_model_does_not_end_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = server.batcher.recognizer.reader
    monkeypatch.setattr(reader, "model", None)
    assert ask(server, "POST", "/read", toy.crop("a"))[0] == 503
    monkeypatch.undo()
    assert ask(server, "POST", "/read", toy.crop("a"))[0] == 200


def test_export_equals_torch_at_both_batch_sizes(recognizer: Recognizer) -> None:
    pytest.importorskip("onnxruntime")
    data = export.export(recognizer)
    assert export.check(recognizer, data, export.drawn_words(recognizer)) < 1e-4
    recognizer.reader.model.centres.data += 0.3
    with pytest.raises(UserError):
        export.check(recognizer, data, export.drawn_words(recognizer))


def test_export_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    from common import cli

    toy.install(monkeypatch)
    checkpoint = toy.save_toy(tmp_path / "toy.pth")
    assert (
        cli.main(["export", "--checkpoint", str(checkpoint), "--model", "toy/brightness", "--device", "cpu", "--check"])
        == 0
    )
    assert "checked on 32 images" in capsys.readouterr().out and (tmp_path / "toy.onnx").is_file()
