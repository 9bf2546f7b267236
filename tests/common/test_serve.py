"""`strlab serve`: its answers, limits, refusals, load and end."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common import cli
from common.infer import shipped
from common.infer.recognizer import Recognizer
from tests.common import toy
from tests.conftest import ROOT

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
from common.serve.app import create_app  # noqa: E402
from common.serve.guard import Limits, StrictProtocol  # noqa: E402

BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


class Running:
    """A server in a thread of this process, on a free port."""

    def __init__(
        self, limits: Limits, cors: tuple[str, ...] = (), upload_s: float = 20.0, paint: object | None = None
    ) -> None:
        reader = toy.BrightnessReader(toy.Brightness(), torch.device("cpu"))
        self.recognizer = Recognizer(reader, batch_size=8, name="toy/Brightness")
        self.app = create_app(self.recognizer, "toy", limits, cors, paint)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        protocol = type("Protocol", (StrictProtocol,), {"upload_s": upload_s})
        self.server = uvicorn.Server(uvicorn.Config(self.app, http=protocol, ws="none", log_level="error"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> Running:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.socket.close()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        with contextlib.closing(connection):
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            response = connection.getresponse()
            data = response.read()
            kind = response.headers["content-type"] or ""
            found = json.loads(data) if "json" in kind else {"body": data.decode()}
            return response.status, found, {key.lower(): value for key, value in response.headers.items()}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = Limits(max_bytes=40_000, max_images=3, max_pixels=1_000_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "folders", list)
        with Running(limits) as running:
            yield running


def form(*files: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="%d.png"\r\n\r\n'
    parts = [(head % i).encode() + data + b"\r\n" for i, data in enumerate(files)]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def listed(*files: bytes, prefix: str = "") -> bytes:
    return json.dumps({"images": [prefix + base64.encodebytes(data).decode() for data in files]}).encode()


def bomb(side: int = 12_000) -> bytes:
    """A PNG of some kilobytes that announces (and holds) side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes(side // 8 + 1) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_every_way_to_send_a_picture(server: Running) -> None:
    ways = [
        (toy.crop("b"), "image/png"), (toy.crop("b"), "application/octet-stream"), (form(toy.crop("b")), MULTIPART),
        (toy.crop("b"), "application/x-www-form-urlencoded"), (listed(toy.crop("b")), "application/json"),
        (listed(toy.crop("b"), prefix="data:image/png;base64,"), "application/json"),
        (json.dumps({"image": base64.b64encode(toy.crop("b")).decode()}).encode(), "application/json"),
    ]  # fmt: skip
    for body, kind in ways:
        status, answer, headers = server.ask("POST", "/read", body, Content_Type=kind)
        assert (status, [one["text"] for one in answer["predictions"]]) == (200, ["b"]), kind
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "default-src 'none'" in headers["content-security-policy"]
        )


def test_several_pictures_answer_one_by_one(server: Running) -> None:
    status, answer, _ = server.ask(
        "POST", "/read", form(toy.crop("a"), b"broken", toy.crop("c")), Content_Type=MULTIPART
    )
    assert status == 200 and [one["text"] for one in answer["predictions"]] == ["a", "", "c"]
    assert answer["predictions"][1]["error"] and answer["predictions"][2]["name"] == "2.png"
    one = answer["predictions"][0]
    assert len(one["char_confidences"]) == 1 and 0.5 < one["confidence"] <= 1 and "attention" not in one
    status, answer, _ = server.ask("POST", "/read?attention=1", toy.crop("a"), Content_Type="image/png")
    maps = answer["predictions"][0]["attention"]
    assert maps["shape"] == [1, 2, 4] and len(base64.b64decode(maps["data"])) == 8


JSON = "application/json"


@pytest.mark.parametrize("body, kind, status", [
    (b"{", JSON, 422), (b"[]", JSON, 422), (b'{"images": 3}', JSON, 422), (b'{"images": []}', JSON, 422),
    (b'{"images": ["?"]}', JSON, 422), (b'{"images": [3]}', JSON, 422), (b"[" * 30000, JSON, 422), (b"3", JSON, 422),
    (listed(*[b"x"] * 4), JSON, 413), (form(*[b"x"] * 4), MULTIPART, 413), (b"hello", "image/png", 422),
    (b"", "image/png", 422), (b"hello", "text/html", 415), (b"<a/>", "application/xml", 415),
    (b"no form", MULTIPART, 422), (b"x" * 40_001, "image/png", 413), (bomb(), "image/png", 413),
])  # fmt: skip
def test_refusals_are_json_with_the_right_status(server: Running, body: bytes, kind: str, status: int) -> None:
    found, answer, _ = server.ask("POST", "/read", body, Content_Type=kind)
    assert (found, bool(answer["error"])) == (status, True)


def test_other_refusals(server: Running) -> None:
    assert server.ask("POST", "/read?reader=nobody", toy.crop("a"))[0] == 422
    assert server.ask("POST", "/read?attention=perhaps", toy.crop("a"))[0] == 422
    assert server.ask("GET", "/etc/passwd")[0] == 404 and server.ask("GET", "/read")[0] == 405
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert server.ask("GET", "/health", Host=host)[0] == 400, host
    for host in ("localhost:1", "127.0.0.1", "[::1]:8080", "10.0.0.7:80"):
        assert server.ask("GET", "/health", Host=host)[0] == 200, host
    headers = server.ask("POST", "/read", toy.crop("a"), Origin="https://other.example")[2]
    assert "access-control-allow-origin" not in headers


def test_the_pages_and_the_description(server: Running) -> None:
    assert server.ask("GET", "/health")[1]["model"] == "toy/Brightness"
    assert server.ask("GET", "/ready")[1] == {"status": "ready"}
    assert (
        server.ask("GET", "/models")[1][0]["name"] == "toy" and server.ask("GET", "/models")[1][0]["charset"] == "abc"
    )
    api = server.ask("GET", "/openapi.json")[1]
    assert set(api["paths"]) == {"/read", "/health", "/ready", "/models"}
    assert {"multipart/form-data", "application/json"} <= set(api["paths"]["/read"]["post"]["requestBody"]["content"])
    for path in ("/", "/docs"):
        text = server.ask("GET", path)[1]["body"]
        assert text.startswith("<!doctype html>") and not re.search(r"(src|href)=[\"']?(https?:)?//", text)


def test_a_fault_of_the_model_does_not_end_the_server(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.recognizer.reader, "model", None)
    assert server.ask("POST", "/read", toy.crop("a"))[0] == 503
    monkeypatch.undo()
    assert server.ask("POST", "/read", toy.crop("a"))[0] == 200


def test_key_rate_and_cors() -> None:
    with Running(Limits(api_key="secret", rate=3, hosts=("words.example",)), ("https://mine.example",)) as server:
        assert server.ask("POST", "/read", toy.crop("a"))[0] == 401 and server.ask("GET", "/models")[0] == 401
        assert server.ask("GET", "/health", Host="words.example")[0] == 200 and server.ask("GET", "/")[0] == 200
        for headers in ({"X_API_Key": "secret"}, {"Authorization": "Bearer secret"}):
            status, _, found = server.ask("POST", "/read", toy.crop("a"), Origin="https://mine.example", **headers)
            assert status == 200 and found["access-control-allow-origin"] == "https://mine.example"
        assert server.ask("POST", "/read", toy.crop("a"), X_API_Key="wrong")[0] == 401
        assert server.ask("POST", "/read", toy.crop("a"), X_API_Key="secret")[0] == 200
        status, answer, headers = server.ask("POST", "/read", toy.crop("a"), X_API_Key="secret")
        assert status == 429 and headers["retry-after"] and "3 requests in a minute" in answer["error"]


def test_many_clients_at_once_and_a_clean_503_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(Limits(max_waiting=16)) as server:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda i: server.ask("POST", "/read", toy.crop("abc"[i % 3]))[:2], range(160)))
        assert [answer["predictions"][0]["text"] for _, answer in found] == ["abc"[i % 3] for i in range(160)]
        gate, read = threading.Event(), server.recognizer.reader.read
        monkeypatch.setattr(server.recognizer.reader, "read", lambda *a, **k: (gate.wait(300), read(*a, **k))[1])
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            waiting = [pool.submit(server.ask, "POST", "/read", toy.crop("a")) for _ in range(40)]
            refused = [
                one.result() for one in concurrent.futures.as_completed(waiting) if _open_after(gate, waiting, 24)
            ]
        assert sorted(one[0] for one in refused) == [200] * 16 + [503] * 24
        assert all(one[2]["retry-after"] for one in refused if one[0] == 503)


def _open_after(gate: threading.Event, waiting: list, count: int) -> bool:
    """Open the gate once so many of the requests were answered; always True."""
    if sum(one.done() for one in waiting) >= count:
        gate.set()
    return True


def test_slow_clients_are_cut_and_do_not_shut_others_out() -> None:
    with Running(Limits(upload_s=3.0), upload_s=3.0) as server:
        heads = [b"POST /rea", b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nabc"]
        slow = [socket.create_connection(("127.0.0.1", server.port), timeout=300) for _ in range(72)]
        for i, stream in enumerate(slow):
            stream.sendall(heads[i % 2])
        assert server.ask("POST", "/read", toy.crop("a"))[0] == 200
        for _ in range(3):  # bytes that keep dripping do not help
            time.sleep(0.2)
            for stream in slow:
                with contextlib.suppress(OSError):
                    stream.sendall(b"x")
        ends = [_received(stream) for stream in slow]  # a client that is not cut ends the test by its own timeout
        assert sum(b"408" in end for end in ends) == 36 and sum(end == b"" for end in ends) == 36


def _received(stream: socket.socket) -> bytes:
    """What arrives until the server closes the connection."""
    parts = []
    with stream, contextlib.suppress(ConnectionError):
        while data := stream.recv(4096):
            parts.append(data)
    return b"".join(parts)


def test_a_client_that_goes_away_is_not_read(server: Running) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as stream:
            stream.sendall(b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nhalf")
    assert server.ask("POST", "/read", toy.crop("c"))[1]["predictions"][0]["text"] == "c"


def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--max-waiting", "-9"]) == 2
    assert "--max-waiting: -9 must be at least 1" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen on" in capsys.readouterr().err


def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    """The real command, on ::1 where the machine has it."""
    toy.save_toy(tmp_path / "toy.pth")
    script = (
        "import sys, time\nfrom common import cli, registry\nfrom tests.common import toy\n"
        "registry.rows = lambda: (toy.ROW,)\nread = toy.BrightnessReader.read\n"
        "def slow(self, images, attention=False):\n    print('reading', flush=True); time.sleep(1.0)\n"
        "    return read(self, images, attention)\n"
        "toy.BrightnessReader.read = slow\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    host = "::1" if _has_ipv6() else "127.0.0.1"
    words = ["serve", "--checkpoint", str(tmp_path / "toy.pth"), "--model", "toy/Brightness", "--device", "cpu",
             "--host", host, "--port", "0", "--quiet"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", script, *words], cwd=tmp_path, env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        found = re.search(r"http://\[?([\w.:]+?)\]?:(\d+)/ ", child.stdout.readline())
        connection = http.client.HTTPConnection(found[1], int(found[2]), timeout=300)
        assert child.stdout.readline() == "reading\n"  # the warm-up
        connection.request("POST", "/read", toy.crop("b"), {"Content-Type": "image/png"})
        assert child.stdout.readline() == "reading\n"
        child.send_signal(signal.SIGTERM)
        answer = json.loads(connection.getresponse().read())
        assert answer["predictions"][0]["text"] == "b"
        assert child.wait(300) in (0, -signal.SIGTERM, 143)
    finally:
        child.kill()
        child.communicate()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_large_transparent_picture_is_cheap() -> None:
    """Composited in 8 bits: no floats of the whole picture."""
    import resource

    from PIL import Image

    from common.data.pictures import decode_shown

    buffer = io.BytesIO()
    Image.new("RGBA", (4000, 3000), (10, 20, 30, 128)).save(buffer, "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_shown(buffer.getvalue()).shape == (3000, 4000, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_painting_by_the_api() -> None:
    """What /paint takes, answers and refuses; without a painter it is not there."""
    from common.errors import UserError

    def paint(image: object, box: list[float], text: str, seed: int) -> object:
        if text == "no":
            raise UserError("--text no: this font has no glyph for it")
        return 255 - image

    data = base64.b64encode(toy.crop("a", (40, 20))).decode()
    with Running(Limits(max_pixels=1000), paint=paint) as running:

        def ask(**fields: object) -> tuple[int, dict]:
            body = json.dumps({"image": data, "box": [2, 2, 30, 15], "text": "yes", **fields}).encode()
            status, found, headers = running.ask("POST", "/paint", body, Content_Type="application/json")
            return status, found | {"kind": headers["content-type"]}

        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=300)
        body = json.dumps({"image": f"data:image/png;base64,{data}", "box": [2, 2, 30, 15], "text": "yes"})
        connection.request("POST", "/paint", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        from PIL import Image

        with Image.open(io.BytesIO(answer.read())) as picture:
            assert answer.status == 200 and picture.size == (40, 20) and picture.getpixel((3, 3)) == (245, 245, 245)
        connection.close()
        assert ask(text="no")[1]["error"] == "text no: this font has no glyph for it"
        for wrong in ({"box": [1, 2]}, {"text": ""}, {"image": "!"}, {"seed": -1}, {"image": base64.b64encode(
            toy.crop("a", (50, 30))).decode()}):  # fmt: skip
            assert ask(**wrong)[0] == 422, wrong
        assert running.ask("GET", "/health")[1]["paints"] is True
    with Running(Limits()) as running:
        assert running.ask("POST", "/paint", b"{}", Content_Type="application/json")[0] == 404
        assert running.ask("GET", "/health")[1]["paints"] is False


def test_the_painter_is_tried_before_the_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--paint FOLDER`: a project's module `paint` with these weights; wrong weights are refused, as is no project."""
    from types import SimpleNamespace

    import numpy as np

    from common import registry
    from common.errors import UserError
    from common.serve.painting import find_painter

    calls = []

    def paint(image: object, box: object, text: str, *, weights: Path, seed: int = 20) -> object:
        calls.append((text, weights))
        if not weights.is_dir():
            raise UserError(f"--weights {weights}: no such folder")
        return image

    monkeypatch.setattr(registry, "project_modules", lambda: {"reader": "x", "painter": "y"})
    modules = {("painter", "paint"): SimpleNamespace(paint=paint)}
    monkeypatch.setattr(registry, "project_module", lambda project, name: modules.get((project, name)))
    picture = np.zeros((20, 30, 3), np.uint8)
    assert find_painter(tmp_path)(picture, (1, 1, 9, 9), "yes", seed=3) is picture
    assert calls == [("a", tmp_path), ("yes", tmp_path)]
    with pytest.raises(UserError, match="no such folder"):
        find_painter(tmp_path / "absent")
    modules.clear()
    with pytest.raises(UserError, match="no installed project paints words"):
        find_painter(tmp_path)


def test_a_project_paints_with_these_arguments() -> None:
    """What `find_painter` passes is what the project's function takes."""
    import inspect

    from common import registry

    modules = [registry.project_module(project, "paint") for project in registry.project_modules()]
    (module,) = [module for module in modules if module is not None]
    inspect.signature(module.paint).bind("image", (0, 0, 9, 9), "word", weights="folder", seed=1)
