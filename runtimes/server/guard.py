"""The door of the server: keys, hosts and origins, sizes, places, and what is counted, round every request."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from .admission import Places
from .errors import LOG, ApiError, api_error
from .metrics import Metrics
from .options import LOCAL_NAMES, ServerOptions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

WORK = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions")
OPEN = ("/", "/health")  # without a key: the page, which asks for one, and what a supervisor looks at
ROUTES = (*WORK, *OPEN, "/v1/models", "/metrics", "/openapi.json")
DRAIN_SECONDS = 2.0
DRAIN = 4  # times the largest body
SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Guard:
    """An ASGI application round another."""

    def __init__(self, app: App, options: ServerOptions, places: Places, metrics: Metrics) -> None:
        self._app = app
        self._options = options
        self._places = places
        self._metrics = metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = _Body(receive, self._options.max_upload, headers.get("expect", "").lower() == "100-continue")
        answer = _Answer(send, body, self._allowed_origin(headers), monotonic())
        try:
            await self._pass(scope, headers, body, answer)
        except ApiError as reason:
            if not answer.begun:
                await respond(reason, answer.send)
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.request(route, answer.status, monotonic() - answer.since)

    async def _pass(self, scope: Message, headers: dict[str, str], body: "_Body", answer: "_Answer") -> None:
        self._check_host(headers)
        self._check_origin(headers)
        if scope["method"] == "OPTIONS" and answer.origin:
            await answer.preflight()
            return
        if scope["path"] not in OPEN:
            self._check_key(headers)
        if scope["path"] not in WORK or scope["method"] != "POST":
            await self._app(scope, body.receive, answer.send)
            return
        async with self._places.enter() as visit:
            body.check_length(headers)
            scope["ossicle.visit"] = visit
            await self._app(scope, body.receive, answer.send)

    def _check_key(self, headers: dict[str, str]) -> None:
        key = self._options.api_key
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not key or (scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())):
            return
        message = "the key is missing or wrong. Send it as: Authorization: Bearer KEY"
        raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_host(self, headers: dict[str, str]) -> None:
        """A page elsewhere may have its own name point at this machine; without a key, only known names are answered."""
        if self._options.api_key or not self._options.is_local:
            return
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        known = {*LOCAL_NAMES, self._options.host, *(urlsplit(one).hostname for one in self._options.origins)}
        if host not in known:
            raise ApiError(403, f"host '{host}' is not answered (--allow-origin names others).", "host_not_allowed")

    def _check_origin(self, headers: dict[str, str]) -> None:
        """A page elsewhere can send what it cannot read the answer of: it would put this machine to work."""
        origin = headers.get("origin")
        if origin is None or self._allowed_origin(headers) or urlsplit(origin).netloc == headers.get("host"):
            return
        raise ApiError(403, f"origin '{origin}' may not ask (--allow-origin lets it).", "origin_not_allowed")

    def _allowed_origin(self, headers: dict[str, str]) -> str:
        origin = headers.get("origin", "")
        return origin if origin in self._options.origins else ""


class _Body:
    """A request's body, refused as soon as it has more bytes than it may."""

    def __init__(self, receive: Receive, most: int, is_held_back: bool) -> None:
        self._receive = receive
        self._most = most
        self._read = 0
        self._is_over = False
        self._is_held_back = is_held_back  # the client asked first, and sends nothing until its body is read

    def check_length(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_over = message["type"] != "http.request" or not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise self._too_large()
        return message

    async def drain(self) -> None:
        """Let what the client still sends pass by, for a while: one that is cut off while it sends reads no answer."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._is_over and not self._is_held_back and self._read <= DRAIN * self._most:
                    message = await self._receive()
                    self._read += len(message.get("body", b""))
                    self._is_over = message["type"] != "http.request" or not message.get("more_body", False)
        except TimeoutError:
            LOG.info("a client that was refused still sends; its connection is closed")

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self._most / (1 << 20):g} MB.", "too_large")


class _Answer:
    """A response on its way out: its status noted, headers added."""

    def __init__(self, send: Send, body: _Body, origin: str, since: float) -> None:
        self._send = send
        self._body = body
        self.origin = origin
        self.since = since
        self.status = 499  # until one is sent
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._body.drain()
            self.begun, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), *SAFE, *self._cors()]
        await self._send(message)

    async def preflight(self) -> None:
        allow = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", b"600")]
        allow.append((b"access-control-allow-headers", b"authorization, content-type"))
        await self.send({"type": "http.response.start", "status": 204, "headers": allow})
        await self.send({"type": "http.response.body"})

    def _cors(self) -> list[tuple[bytes, bytes]]:
        if not self.origin:
            return []
        return [(b"access-control-allow-origin", self.origin.encode("latin-1")), (b"vary", b"Origin")]


async def respond(reason: BaseException, send: Send) -> None:
    """Send an error in OpenAI's shape."""
    error = api_error(reason)
    body = json.dumps(error.document, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
