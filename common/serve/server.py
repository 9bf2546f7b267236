"""`strlab serve`: a small HTTP server that reads images.

    POST /read    body: one image file (JPEG, PNG, WebP…), or JSON {"images": ["<base64>", …]}
                  answer: {"predictions": [{"text", "confidence", "char_confidences", "error"}, …]}
    GET  /health  {"status": "ok", "model": …, "charset": …}

Requests that arrive together are read in one batch. It listens on the loopback address unless told otherwise, knows no
paths or links, refuses bodies above `--max-bytes` and more than `--max-images` images, answers 503 where too many
wait, and ends connections that stall. There is no authentication: put a proxy before it where others can reach it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import queue
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common.errors import UserError
from common.infer.read import add_checkpoint_arguments, open_from
from common.infer.recognizer import Prediction, Recognizer

STALL = 20.0  # seconds that a connection may be silent
ANSWER = 60.0  # seconds that an answer may take


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `strlab serve`."""
    parser = subparsers.add_parser(
        "serve", help="a small HTTP server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default 8080)")
    parser.add_argument("--max-bytes", type=int, default=16 << 20, help="largest body (default 16 MiB)")
    parser.add_argument("--max-images", type=int, default=64, help="most images in a request (default 64)")
    parser.add_argument("--max-waiting", type=int, default=64, help="most requests that wait (default 64)")
    parser.set_defaults(run=_run)


@dataclass
class Job:
    """The images of one request, and later their predictions."""

    images: list[bytes]
    predictions: list[Prediction] | None = None
    ready: threading.Event = field(default_factory=threading.Event)


class Batcher(threading.Thread):
    """The one thread that runs the model: takes what waits, up to a batch, reads it, hands the answers back."""

    def __init__(self, recognizer: Recognizer, most_waiting: int) -> None:
        super().__init__(daemon=True)
        self.recognizer = recognizer
        self.jobs: queue.Queue[Job | None] = queue.Queue(most_waiting)

    def ask(self, images: list[bytes]) -> list[Prediction] | None:
        """Read images; None where too many requests wait already or the answer takes too long."""
        job = Job(images)
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            return None
        return job.predictions if job.ready.wait(ANSWER) else None

    def run(self) -> None:
        """Serve until a None arrives."""
        while (job := self.jobs.get()) is not None:
            jobs = [job]
            while sum(len(one.images) for one in jobs) < self.recognizer.batch_size and not self.jobs.empty():
                following = self.jobs.get()
                if following is None:
                    return
                jobs.append(following)
            self._answer(jobs)

    def _answer(self, jobs: list[Job]) -> None:
        """Read the images of some jobs together; a fault of the model must not end the server."""
        try:
            predictions = self.recognizer([image for job in jobs for image in job.images])
        except Exception as error:
            print(f"a batch failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            predictions = None
        self.recognizer.bad.clear()
        for job in jobs:
            if predictions is not None:
                job.predictions, predictions = predictions[: len(job.images)], predictions[len(job.images) :]
            job.ready.set()


class Server(ThreadingHTTPServer):
    """The HTTP server with its batcher and limits; `server_address` tells the port."""

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        recognizer: Recognizer,
        model: str = "",
        max_bytes: int = 16 << 20,
        max_images: int = 64,
        max_waiting: int = 64,
    ) -> None:
        super().__init__(address, Handler)
        self.model, self.max_bytes, self.max_images = model, max_bytes, max_images
        self.charset = recognizer.charset
        self.connections = threading.BoundedSemaphore(max_waiting + 8)
        self.batcher = Batcher(recognizer, max_waiting)
        self.batcher.start()

    def process_request(self, request, client_address) -> None:
        """Take a connection only while there is room for its thread."""
        if not self.connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:
        """Serve a connection and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address) -> None:
        """Nothing is said of a client that went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = STALL
    server_version, sys_version = "strlab", ""

    def do_GET(self) -> None:
        """`/health`."""
        if self.path == "/health":
            self._send(200, {"status": "ok", "model": self.server.model, "charset": self.server.charset})
        else:
            self._send(404, {"error": "POST /read or GET /health"})

    def do_POST(self) -> None:
        """`/read`."""
        if self.path != "/read":
            self._send(404, {"error": "POST /read or GET /health"})
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", length) or int(length) == 0:
            self._send(411, {"error": "a body with a Content-Length is needed"})
        elif int(length) > self.server.max_bytes:
            self._send(413, {"error": f"at most {self.server.max_bytes} bytes"})
        else:
            self._read(self.rfile.read(int(length)))

    def _read(self, body: bytes) -> None:
        """Take the images out of a body and answer."""
        try:
            images = self._images(body)
        except UserError as error:
            self._send(400, {"error": str(error)})
            return
        predictions = self.server.batcher.ask(images)
        if predictions is None:
            self._send(503, {"error": "busy, or the model failed; try again"})
        else:
            self._send(200, {"predictions": [as_dict(prediction) for prediction in predictions]})

    def _images(self, body: bytes) -> list[bytes]:
        """The image files in a body: its own bytes, or a JSON list. Raises `UserError`."""
        if "json" not in self.headers.get("Content-Type", "").lower():
            return [body]
        try:
            images = json.loads(body)["images"]
            decoded = [base64.b64decode(image, validate=True) for image in images]
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
            raise UserError('the body is no JSON of the form {"images": ["<base64>", ...]}') from None
        if not 0 < len(decoded) <= self.server.max_images:
            raise UserError(f"{len(decoded)} images; 1 to {self.server.max_images} are taken")
        return decoded

    def _send(self, status: int, answer: dict) -> None:
        data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, format: str, *values: object) -> None:
        """One line on stderr; control characters of a request are not copied to the terminal."""
        text = "".join(c if c.isprintable() else "?" for c in format % values)
        print(f"{self.address_string()} {text}", file=sys.stderr, flush=True)


def as_dict(prediction: Prediction) -> dict[str, object]:
    """A prediction as plain data."""
    return {
        "text": prediction.text,
        "confidence": round(float(prediction.confidence), 6),
        "char_confidences": [round(float(value), 6) for value in prediction.char_confidences],
        "error": prediction.error,
    }


def _run(args: argparse.Namespace) -> int:
    for name in ("max_bytes", "max_images", "max_waiting"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(args, name)} must be at least 1")
    recognizer = open_from(args)
    try:
        server = Server(
            (args.host, args.port), recognizer, args.checkpoint.name, args.max_bytes, args.max_images, args.max_waiting
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host/--port: cannot listen on {args.host}:{args.port}: {reason}") from None
    host, port = server.server_address[:2]
    print(f"reading at http://{host}:{port}/read", flush=True)
    if host not in ("127.0.0.1", "::1", "localhost"):
        print("warning: there is no authentication, and others can reach this address", file=sys.stderr)
    with server:
        server.serve_forever()
    return 0
