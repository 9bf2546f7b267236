"""`strlab serve`: a web page and an HTTP API that read pictures of words.

    GET  /         a page: drop, paste, choose or photograph pictures
    POST /read     multipart files, a raw picture, or JSON {"images": ["<base64>", …]}
                   ?reader=NAME chooses a shipped reader, ?attention=1 adds maps,
                   ?detect=1 finds the words of whole pictures first
    POST /paint    with --paint: a word painted into a picture, by TextSSR
    GET  /models   the readers;  /health and /ready for supervisors;  /docs and /openapi.json describe the API

Requests that arrive together are read in one batch. The server listens on the loopback address unless --host says
otherwise, checks the Host header, allows no other site's pages (see --cors) and limits bytes, pixels, pictures and time
of a request. Where others can reach it, set an API key in the environment variable STRLAB_API_KEY.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from common.errors import UserError
from common.infer.read import add_checkpoint_arguments, open_from


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="a web page and an HTTP API",
        description=__doc__,
    )
    add_checkpoint_arguments(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine only; ::1 works)")
    add("--port", type=int, default=8080, help="0 takes a free one (default 8080)")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name under which others reach the server")
    add("--cors", action="append", default=[], metavar="ORIGIN", help="a site whose pages may use the API")
    add("--max-bytes", type=int, default=16 << 20, help="largest body (default 16 MiB)")
    add("--max-pixels", type=int, default=24_000_000, help="most pixels in a request (default 24 million)")
    add("--max-images", type=int, default=64, help="most pictures in a request (default 64)")
    add("--max-waiting", type=int, default=128, help="most requests in progress; then 503 (default 128)")
    add(
        "--rate",
        type=int,
        default=0,
        metavar="N",
        help="most requests a minute of one address, then 429",
    )
    add("--upload-seconds", type=float, default=20.0, help="time for a request to arrive (default 20)")
    add("--answer-seconds", type=float, default=60.0, help="time for an answer (default 60)")
    add("--exif", action="store_true", help="turn photographs as their EXIF orientation says")
    add(
        "--paint", type=Path, nargs="?", const=True, metavar="FOLDER",
        help="adds /paint and a tab that paints words, by TextSSR: its weights in FOLDER, or those that ship",
    )  # fmt: skip
    add("--quiet", action="store_true", help="no line for each request")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    for name in ("max_bytes", "max_pixels", "max_images", "max_waiting", "upload_seconds", "answer_seconds"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(args, name)} must be at least 1")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port: {args.port} must be from 0 to 65535")
    try:
        import python_multipart  # noqa: F401
        import uvicorn

        # these need the packages of the extra `serve`
        from common.serve.app import create_app
        from common.serve.guard import Limits, StrictProtocol
        from common.serve.painting import find_painter
    except ModuleNotFoundError as error:
        raise UserError(
            f"strlab serve: the package {error.name} is not installed; run `pip install 'strlab[serve]'`"
        ) from None
    listening = listen(args.host, args.port)
    recognizer = open_from(args, upright=args.exif)
    limits = Limits(
        max_bytes=args.max_bytes, max_images=args.max_images, max_pixels=args.max_pixels, max_waiting=args.max_waiting,
        rate=args.rate, upload_s=args.upload_seconds, answer_s=args.answer_seconds,
        hosts=(args.host, *args.allow_host), api_key=os.environ.get("STRLAB_API_KEY", ""),
    )  # fmt: skip
    paint = find_painter(None if args.paint is True else args.paint) if args.paint is not None else None
    app = create_app(recognizer, recognizer.source.stem, limits, args.cors, paint)
    listening.listen(1024)  # clients may connect from here on; they are answered when the server has started
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"open http://{shown}:{port}/ in a browser; the API is described at /docs", flush=True)
    if host not in ("127.0.0.1", "::1") and not limits.api_key:
        print("warning: others can reach this address and no STRLAB_API_KEY is set", file=sys.stderr)
    config = uvicorn.Config(
        app, http=type("Protocol", (StrictProtocol,), {"upload_s": args.upload_seconds}), ws="none", lifespan="on",
        log_level="warning" if args.quiet else "info", access_log=not args.quiet, server_header=False,
        timeout_keep_alive=5, timeout_graceful_shutdown=int(args.answer_seconds) + 1, backlog=1024,
        limit_concurrency=None, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises `UserError` where the address cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host/--port: cannot listen on {host}:{port}: {reason}") from None
    listening.set_inheritable(True)
    return listening
