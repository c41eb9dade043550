"""What stands in front of every request: who may ask, how much, and for how long.

It works before anything of a request is read: a stranger, or one request too many, costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from bella.serve.gauges import Gauges
from bella.serve.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/healthz", "/readyz")
"""What is told without a token: the empty page, and whether the service works."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEADLINE = "bella.deadline"
"""Where a request says until when it waits, on the monotonic clock."""


class RefusedError(HTTPException):
    """A request that is not answered, with its HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(status, sentence)


class Guard:
    """Middleware around the whole application.

    Args:
        app: what answers.
        limits: see `Limits`.
        gauges: what hears of every request.
        token: which requests have to bear; ``None`` for none.
        local: whether only this machine can ask. Without a token a request must then call the
            service by one of this machine's own names: a page of somebody else's, open in a browser
            here, could otherwise have its own name mean this machine, and read the answers.
    """

    def __init__(self, app: App, *, limits: Limits, gauges: Gauges, token: str | None, local: bool):
        self.app = app
        self.limits = limits
        self.gauges = gauges
        self.token = token
        self.local = local
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, started = time.monotonic(), False
        scope[DEADLINE] = begun + self.limits.seconds
        status = 500
        self.running += 1
        self.gauges.running.set(self.running)

        async def answer(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                more = [pair for code, pair in ALSO if status == code]
                message["headers"] = [*message.get("headers", ()), *SAFE, *more]
            elif status == 413 and not message.get("more_body", False):
                # Who is still sending would otherwise lose the answer with the connection.
                await send({**message, "more_body": True})
                await drain(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, self.bounded(scope, receive), answer)
        except RefusedError as refused:
            if started:
                raise
            await refuse(answer, refused.status_code, str(refused.detail))
        finally:
            self.running -= 1
            self.gauges.running.set(self.running)
            route = getattr(scope.get("route"), "path", "other")  # any path may be asked for
            self.gauges.hear_request(route, status, time.monotonic() - begun)

    def check(self, scope: Scope) -> None:
        """Refuse by what stands in the head of a request.

        Raises:
            RefusedError: see there.
        """
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.token is None:
            self.check_place(host, headers.get(b"origin"))
        elif scope["path"] not in OPEN:
            self.check_token(headers.get(b"authorization", ""), self.token)
        if scope["method"] != "POST":
            return
        if self.running > self.limits.queue:
            raise RefusedError(
                429, f"{self.limits.queue} requests are being answered: ask again in a second."
            )
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.limits.body:
            raise self.too_large()

    def check_place(self, host: str, origin: str | None) -> None:
        """Refuse what pages of other sites ask by way of a browser on this machine.

        Raises:
            RefusedError: it is so asked.
        """
        if self.local and name_of(host) not in LOOPBACK:
            raise RefusedError(421, "This service is for its own machine: ask for localhost.")
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            raise RefusedError(403, "Pages of other sites may not ask this service.")

    def check_token(self, authorization: str, token: str) -> None:
        """Refuse who does not bear the token; how much of it is right cannot be told by the time.

        Raises:
            RefusedError: the token is another, or missing.
        """
        kind, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), token.encode())
        if kind.lower() != "bearer" or not same:
            raise RefusedError(401, "Give the service's token: Authorization: Bearer TOKEN.")

    def bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The body, as long as it is neither too large nor too slow."""
        read, whole = 0, False

        async def next_part() -> Message:
            nonlocal read, whole
            if whole:  # waiting for the other side to hang up
                return await receive()
            left = scope[DEADLINE] - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                raise RefusedError(
                    408, f"The request did not arrive within {self.limits.seconds:g} seconds."
                ) from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self.limits.body:
                raise self.too_large()
            return message

        return next_part

    def too_large(self) -> RefusedError:
        """What is said of a body that is."""
        return RefusedError(413, f"A request may have {self.limits.body:,} bytes: send less.")


async def drain(receive: Receive, seconds: float = 2.0) -> None:
    """Read on, and forget it, until all has arrived or some time is over."""

    async def rest() -> None:
        while (await receive()).get("more_body", False):
            pass

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(rest(), seconds)


SAFE = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""What every answer says to browsers."""
ALSO = (
    (401, (b"www-authenticate", b"Bearer")),
    (408, (b"connection", b"close")),
    (413, (b"connection", b"close")),
    (429, (b"retry-after", b"1")),
    (503, (b"retry-after", b"1")),
)
"""What answers of a status say besides."""


def name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def refuse(send: Send, status: int, sentence: str) -> None:
    """Answer with a status and a sentence."""
    content = problem(sentence)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def problem(sentence: str) -> bytes:
    """A sentence as JSON; what is no text (half a surrogate pair) is escaped."""
    return json.dumps({"detail": sentence}).encode()
