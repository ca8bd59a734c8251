"""What every request passes before the study sees it: rates, sizes, the proxy's prefix, headers of the answer.

Plain ASGI, so that a body is counted while it arrives and refused without being kept.
"""

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from typing import Any

from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowgrain.evaluate.study.refusal import Refusal

MOST_BODY_BYTES = 64 * 1024
MOST_BODY_SECONDS = 20.0
MOST_KEYS = 50_000

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "x-robots-tag": "noindex, nofollow",
}


class TokenBucket:
    """At most ``rate`` a second on average and ``burst`` at once, for each key. Keys least used are forgotten."""

    def __init__(self, rate: float, burst: float):
        self._rate = rate
        self._burst = burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str, moment: float) -> float:
        """Take one; seconds to wait where there is none left, else 0."""
        level, since = self._levels.pop(key, (self._burst, moment))
        level = min(self._burst, level + (moment - since) * self._rate)
        allowed = level >= 1
        self._levels[key] = (level - 1 if allowed else level, moment)
        if len(self._levels) > MOST_KEYS:
            self._levels.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self._rate


class RateLimit:
    """Requests by token, by address, and entries by address; all else is 429 with ``Retry-After``.

    Files have a looser limit than the interface. Forged tokens do not help: the address is always charged too.
    """

    def __init__(self, app: ASGIApp, token_rate: float, address_rate: float, entries_per_minute: float):
        self.app = app
        self._tokens = TokenBucket(token_rate, 6 * token_rate)
        self._addresses = TokenBucket(address_rate, 10 * address_rate)
        self._files = TokenBucket(10 * address_rate, 100 * address_rate)
        self._entries = TokenBucket(entries_per_minute / 60, entries_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse or pass on."""
        wait = self._wait(scope) if scope["type"] == "http" else 0.0
        if wait > 0:
            await _refuse(Refusal("too_many_requests", retry_after=math.ceil(wait)), scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _wait(self, scope: Scope) -> float:
        moment, path, address = time.monotonic(), scope["path"], _network(scope)
        if not path.startswith("/api/"):
            return self._files.wait(address, moment)
        wait = self._addresses.wait(address, moment)
        if not wait and path == "/api/enter":
            wait = self._entries.wait(address, moment)
        token = bearer(scope)
        if not wait and token is not None:
            wait = self._tokens.wait(token, moment)
        return wait


class JsonBody:
    """Bodies are JSON, at most ``MOST_BODY_BYTES`` and complete within ``MOST_BODY_SECONDS``."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body within the limits, then pass it on whole."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(MOST_BODY_SECONDS):
                body = await _body(scope, receive)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        except TimeoutError:
            await _refuse(Refusal("timeout"), scope, receive, send)
            return
        if body is None:
            return  # the client went away
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)


class Prefix:
    """The path under which a proxy shows the study, whether the proxy takes it off or not."""

    def __init__(self, app: ASGIApp, root: str):
        self.app = app
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on without the prefix; the bare prefix is sent to the page."""
        if scope["type"] == "http" and self._root:
            path = scope["path"]
            if path == self._root:
                await RedirectResponse(f"{self._root}/")(scope, receive, send)
                return
            if path.startswith(f"{self._root}/"):
                scope = {**scope, "path": path[len(self._root) :]}
        await self.app(scope, receive, send)


class SafeHeaders:
    """Headers that keep a page from doing what it is not meant to; nothing is cached unless it says so."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers to the answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = dict(HEADERS) if b"cache-control" in present else {**HEADERS, "cache-control": "no-store"}
                extra = [(name.encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, with_headers)


def bearer(scope: Scope) -> str | None:
    """The token of a request, unchecked; None where there is none."""
    scheme, _, value = (_header(scope, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    return _header(scope, b"x-study-token")  # a proxy may ask for a password of its own in the other header


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The body; None where the client went away. Raises Refusal as soon as it is too long or not JSON."""
    declared = _header(scope, b"content-length")
    if declared is not None and (not declared.isdecimal() or int(declared[:20]) > MOST_BODY_BYTES):
        raise Refusal("too_large")
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MOST_BODY_BYTES:
            raise Refusal("too_large")
        if not message.get("more_body", False):
            break
    kind = (_header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if scope["method"] not in ("GET", "HEAD", "OPTIONS") and kind != "application/json":
        raise Refusal("unsupported")
    return body


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(refusal.body, refusal.status, refusal.headers)(scope, receive, send)


def _header(scope: Scope, name: bytes) -> str | None:
    values: list[Any] = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if values else None


def _network(scope: Scope) -> str:
    """The address of a client; of IPv6 the /64, which one household has for itself."""
    host = scope["client"][0] if scope.get("client") else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
