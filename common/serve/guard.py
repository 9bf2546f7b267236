"""What stands between the network and the application: limits, Host check, key, headers. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Every limit of the server.

    Attributes:
        max_bytes: largest body of a request.
        max_images: most pictures in a request.
        max_pixels: most pixels of a request's pictures together; checked before anything is decoded.
        max_waiting: requests that may be in progress; the next ones are answered 503.
        rate: requests that one address may send in a minute; 0 sets no limit. More are answered 429.
        upload_s: seconds in which a request's headers and body must have arrived.
        answer_s: seconds that decoding and reading may take.
        hosts: names that the Host header may have in addition to IP addresses and localhost; "*" allows any.
        api_key: what `Authorization: Bearer` or `X-API-Key` must say; empty where no key is needed.
    """

    max_bytes: int = 16 << 20
    max_images: int = 64
    max_pixels: int = 24_000_000
    max_waiting: int = 128
    rate: int = 0
    upload_s: float = 20.0
    answer_s: float = 60.0
    hosts: tuple[str, ...] = ()
    api_key: str = ""


class StrictProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which also cuts a connection whose headers do not arrive in time, however slowly they drip,
    and more connections than one process should hold."""

    upload_s = 20.0
    most_connections = 700

    def connection_made(self, transport: Any) -> None:
        """Start the clock of a new connection, or close one too many."""
        super().connection_made(transport)
        self.clock = asyncio.get_running_loop().call_later(self.upload_s, self._cut)
        if len(self.connections) > self.most_connections:
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Take some bytes; the clock runs while the headers of a request are incomplete."""
        if self._between_requests() and self.clock.cancelled():
            self.clock = asyncio.get_running_loop().call_later(self.upload_s, self._cut)
        super().data_received(data)
        if not self._between_requests():
            self.clock.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self.clock.cancel()
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _cut(self) -> None:
        """Close a connection that has not sent a whole head in time. An idle one is uvicorn's to close."""
        if self._between_requests() and not self.transport.is_closing():
            self.transport.close()


class Guard:
    """Wraps an ASGI application with `Limits`. Every refusal is JSON: {"error": "…"}."""

    def __init__(self, app: Callable, limits: Limits, policy: str) -> None:
        self.app, self.limits, self.policy = app, limits, policy
        self.active = 0
        self.recent: dict[str, deque[float]] = defaultdict(deque)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, then let the application answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = self._with_headers(send)
        if not self._host_allowed(headers.get("host", "")):
            await refuse(send, 400, "the Host header names another server; allow it with --allow-host NAME")
        elif scope["path"] in ("/", "/health", "/ready", "/docs", "/openapi.json") or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
        elif not self._key_fits(headers):
            await refuse(send, 401, "an API key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        else:
            await self._limited(scope, receive, send, headers)

    async def _limited(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        """A request that costs something."""
        client = (scope.get("client") or ("unknown",))[0]
        self.active += 1
        try:
            length = headers.get("content-length")
            if length is not None and int(length) > self.limits.max_bytes:  # h11 lets only digits through
                await refuse(send, 413, f"the body is larger than {self.limits.max_bytes} bytes", close=True)
                return
            try:
                body = await asyncio.wait_for(self._body(receive), self.limits.upload_s)
            except (TimeoutError, ConnectionError):
                await refuse(send, 408, f"the body did not arrive within {self.limits.upload_s:g} seconds", close=True)
                return
            if body is None:
                await refuse(send, 413, f"the body is larger than {self.limits.max_bytes} bytes", close=True)
            elif self.active > self.limits.max_waiting:
                await refuse(send, 503, "too many requests are waiting; try again", retry=1)
            elif not self._rate_allowed(client):
                await refuse(send, 429, f"more than {self.limits.rate} requests in a minute; wait", retry=10)
            else:
                await self.app(scope, _replay(body, receive), send)
        finally:
            self.active -= 1

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where it is too large. Raises ConnectionError where the client goes away."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            size += len(message.get("body", b""))
            if size > self.limits.max_bytes:
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    def _host_allowed(self, host: str) -> bool:
        """Whether the Host header is an address, localhost or an allowed name: a page of a foreign name that was bound
        to this address (DNS rebinding) is none of these."""
        name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.rsplit(":", 1)[0]
        if "*" in self.limits.hosts or name.lower() in ("localhost", *map(str.lower, self.limits.hosts)):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _key_fits(self, headers: dict[str, str]) -> bool:
        if not self.limits.api_key:
            return True
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.limits.api_key.encode())

    def _rate_allowed(self, client: str) -> bool:
        """Count a request of this address; False where it sent too many within a minute."""
        if not self.limits.rate:
            return True
        now, times = time.monotonic(), self.recent[client]
        while times and times[0] < now - 60:
            times.popleft()
        if len(self.recent) > 10_000:  # addresses that went quiet
            kept = {key: value for key, value in self.recent.items() if value and value[-1] > now - 60}
            self.recent = defaultdict(deque, kept)
        if len(times) >= self.limits.rate:
            return False
        self.recent[client].append(now)
        return True

    def _with_headers(self, send: Send) -> Send:
        """Add the security headers to every answer."""
        extra = [
            (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
            (b"content-security-policy", self.policy.encode()), (b"cache-control", b"no-store"),
        ]  # fmt: skip

        async def wrapped(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        return wrapped


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body which has been read already, then what follows (the client's leaving)."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


async def refuse(send: Send, status: int, words: str, retry: int = 0, close: bool = False) -> None:
    """Answer with an error as JSON."""
    data = json.dumps({"error": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if retry:
        headers.append((b"retry-after", str(retry).encode()))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
