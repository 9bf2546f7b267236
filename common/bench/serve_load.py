"""Load and abuse of `strlab serve`, measured: `python -m common.bench.serve_load`.

Starts the server on a free port of the loopback address with the default reader, and measures

- rounds of clients that each send one JPEG crop in a request and the next as soon as they have the answer;
- a hundred clients that all connect at once, with one request each;
- 72 slow clients that send a byte now and then, and what another client sees meanwhile;
- a PNG of some kilobytes that announces 144 million pixels;
- SIGTERM while requests are in progress.

The clients are threads of this process on the same machine, so that they and the server share its cores.
"""

from __future__ import annotations

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image, ImageDraw, ImageFont

from common.errors import UserError, command
from common.flags import Parser

ROOT = Path(__file__).resolve().parents[2]
UPLOAD_SECONDS = 5  # of the server: a request must have arrived by then
SLOW = 72


class Server:
    """`strlab serve` in a process of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        words = [sys.executable, "-m", "common.cli", "serve", "--port", "0", "--quiet",
                 "--upload-seconds", str(UPLOAD_SECONDS), *arguments]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.process.stdout.readline())
        if not found:
            raise UserError(f"strlab serve did not start (exit status {self.process.wait()})")
        self.port = int(found[1])
        while self.ask(b"", "/ready", "GET")[0] != 200:
            time.sleep(0.1)

    def ask(self, body: bytes, path: str = "/read", method: str = "POST") -> tuple[int, float]:
        """Status (0 where the connection failed) and seconds of one request on a connection of its own."""
        began = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            with contextlib.closing(connection):
                connection.request(method, path, body, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                response.read()
                return response.status, time.perf_counter() - began
        except OSError:
            return 0, time.perf_counter() - began

    def memory(self) -> float:
        """Resident memory of the server in MiB, as the system reports it now."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


def crop(text: str = "Morning") -> bytes:
    """JPEG bytes of a rendered crop with one word."""
    image = Image.new("RGB", (160, 48), (214, 205, 180))
    ImageDraw.Draw(image).text((8, 4), text, (40, 30, 60), font=ImageFont.load_default(size=32))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def bomb(side: int = 12_000) -> bytes:
    """A small PNG of `side` x `side` black pixels."""
    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(1 + side // 8)) for _ in range(side)) + row.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def together(count: int, work: Any) -> None:
    """Run `work` in `count` threads that begin at the same moment."""
    barrier = threading.Barrier(count)

    def one() -> None:
        barrier.wait()
        work()

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def figures(answers: Sequence[tuple[int, float]], seconds: float) -> dict[str, Any]:
    """Requests a second, median and 99th percentile in ms, and how many had another status than 200."""
    times = 1000 * np.array([taken for status, taken in answers if status == 200] or [np.nan])
    middle, high = np.percentile(times, [50, 99])
    return {
        "requests": len(answers), "a_second": len(answers) / seconds, "median_ms": middle, "p99_ms": high,
        "ratio": high / middle, "failed": sum(status != 200 for status, _ in answers),
    }  # fmt: skip


def rounds(server: Server, clients: int, seconds: float) -> dict[str, Any]:
    """Clients that send the next request as soon as they have the answer."""
    body, answers, until = crop(), [], time.perf_counter() + seconds

    def work() -> None:
        while time.perf_counter() < until:
            answers.append(server.ask(body))

    began = time.perf_counter()
    together(clients, work)
    return figures(answers, time.perf_counter() - began)


def at_once(server: Server, clients: int) -> dict[str, Any]:
    """Clients that connect at the same moment, with one request each."""
    body, answers, began = crop(), [], time.perf_counter()
    together(clients, lambda: answers.append(server.ask(body)))
    return figures(answers, time.perf_counter() - began)


def slow_clients(server: Server) -> dict[str, Any]:
    """Clients that send one byte of their head a second: what another client sees, and when the last one is cut."""
    began, streams = time.perf_counter(), []
    for _ in range(SLOW):
        stream = socket.create_connection(("127.0.0.1", server.port))
        stream.sendall(b"POST /read HTTP/1.1\r\nHost: localhost\r\nX: ")
        streams.append(stream)
    seen, cut, body = [], 0.0, crop()
    while streams and time.perf_counter() - began < 10 * UPLOAD_SECONDS:
        seen.append(server.ask(body))
        for stream in list(streams):
            stream.settimeout(0.001)
            try:
                stream.sendall(b"x")
                alive = stream.recv(1) != b""
            except TimeoutError:
                alive = True
            except OSError:
                alive = False
            if not alive:
                stream.close()
                streams.remove(stream)
                cut = time.perf_counter() - began
        time.sleep(0.5)
    return {"clients": SLOW, "cut": SLOW - len(streams), "last_cut_s": cut, "limit_s": UPLOAD_SECONDS,
            "others_failed": sum(status != 200 for status, _ in seen),
            "others_median_ms": 1000 * float(np.median([taken for _, taken in seen]))}  # fmt: skip


def bombs(server: Server) -> dict[str, Any]:
    """Ten pictures that announce 144 million pixels in some kilobytes: answers, time, and memory gained."""
    data, before = bomb(), server.memory()
    answers = [server.ask(data) for _ in range(10)]
    return {"bytes": len(data), "statuses": sorted({status for status, _ in answers}),
            "median_ms": 1000 * float(np.median([taken for _, taken in answers])),
            "memory_MiB": server.memory() - before}  # fmt: skip


def sigterm(server: Server, clients: int = 8) -> dict[str, Any]:
    """SIGTERM while requests are in progress: how many of those that were sent got their answer."""
    answers: list[tuple[int, float]] = []
    bodies = crop()
    threads = [threading.Thread(target=lambda: answers.append(server.ask(bodies))) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)  # all have connected; most are being read
    began = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    server.process.wait(90)
    return {"sent": clients, "answered": sum(status == 200 for status, _ in answers),
            "ended_after_s": time.perf_counter() - began}  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything and print it as Markdown, or as JSON."""
    parser = Parser(prog="python -m common.bench.serve_load", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64], help="of each round")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--serve", nargs="*", default=[], metavar="WORD", help="more arguments of `strlab serve`")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    server = Server(args.serve)
    try:
        found: dict[str, Any] = {"load": list(os.getloadavg()), "cores": os.cpu_count(), "rounds": {}}
        rounds(server, 2, 0.5)  # warm
        for clients in args.clients:
            found["rounds"][clients] = rounds(server, clients, args.seconds)
        found["at_once"] = at_once(server, 100)
        found["slow"], found["bombs"], found["sigterm"] = slow_clients(server), bombs(server), sigterm(server)
    finally:
        server.process.kill()
        server.process.wait()
    print(json.dumps(found, indent=1) if args.json else markdown(found))
    return 0


def markdown(found: dict[str, Any]) -> str:
    """The figures as the documentation shows them."""
    lines = ["| clients | requests a second | median | 99th percentile | ratio | failed |", "| --- " * 6 + "|"]
    rows = [*found["rounds"].items(), ("100 that connect at once", found["at_once"])]
    for name, one in rows:
        lines.append(f"| {name} | {one['a_second']:.0f} | {one['median_ms']:,.0f} ms | {one['p99_ms']:,.0f} ms "
                     f"| {one['ratio']:.1f} | {one['failed']} of {one['requests']} |")  # fmt: skip
    slow, big, end = found["slow"], found["bombs"], found["sigterm"]
    lines += [
        "",
        f"* {slow['clients']} slow clients: {slow['cut']} cut, the last after {slow['last_cut_s']:.1f} s (limit "
        f"{slow['limit_s']} s); other requests meanwhile: {slow['others_failed']} failed, median "
        f"{slow['others_median_ms']:.0f} ms.",
        f"* A PNG of {big['bytes'] / 1024:.0f} KiB with 144 million pixels: answered "
        f"{', '.join(map(str, big['statuses']))} after {big['median_ms']:.0f} ms; {big['memory_MiB']:.0f} MiB gained "
        "after ten of them.",
        f"* SIGTERM with {end['sent']} requests on their way: {end['answered']} answered, the process ended after "
        f"{end['ended_after_s']:.1f} s.",
        "",
        f"Load average at the start: {found['load'][0]:.1f} on {found['cores']} cores.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
