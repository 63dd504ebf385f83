# SPDX-License-Identifier: Apache-2.0
"""One request, passed on to an engine, and the engine's answer, passed back as it comes.

Nothing of an answer is changed, but for the headers that hold for one connection only, and the request's id.
Neither side is read faster than the other takes it: what is held of an answer is bounded by a few times
BUFFER_BYTES.

A request is written to an engine at most once, and a client is answered at most once. Whether an engine that
breaks off has done the work cannot be known, so only a request of whose body no engine has got anything may
go to another one: NotSent says so. This is why connections are given up before engines do that
(KEEP_ALIVE_S): an idle one that the engine closes just as it is used would fail a request that the engine has
never seen.

The server must be run with `handler_cancellation=True` (aiohttp.web.AppRunner): a client that goes away
cancels its handler, and with it what is asked of the engine, at once.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from multidict import CIMultiDict
from yarl import URL

BUFFER_BYTES = 1 << 16
# uvicorn, which serves both engines, keeps an idle connection for 5 s.
KEEP_ALIVE_S = 2.0
REQUEST_ID = "X-Request-Id"

# RFC 9110, 7.6.1, and what was for connections only before it.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# The request's body has been read: its length is known, nobody waits to be told to send it, and it is not
# compressed any more.
_OF_REQUESTS = _HOP_BY_HOP | {"host", "content-length", "content-encoding", "expect"}
# What aiohttp takes from an engine, and refuses to say to a client.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# aiohttp's own additions.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass(frozen=True)
class Limits:
    """Seconds. `idle`: of an engine that takes nothing of the request, or has it and says nothing, before its
    answer's first byte and after any other; and of a client that takes nothing of what there is for it. An
    answer may take as long as it likes."""

    connect: float = 5.0
    idle: float = 600.0


@dataclass
class Forwarded:
    """`complete`: all that the engine had to say has been written. Otherwise `broken` says in a sentence what
    happened, and `response`, once the handler has returned it, ends the client's connection so that it can't
    take the part for the whole. `first_byte`: when the answer began, by the loop's clock."""

    response: Answer
    status: int
    first_byte: float
    n_bytes: int = 0
    complete: bool = False
    gone: bool = False
    """The client has gone, which is noticed here when it isn't by the handler's being cancelled."""
    broken: str = ""


class ProxyError(Exception):
    """There is no answer; the client has been sent nothing. `code` and `words` are for errors.reply()."""

    def __init__(self, code: str, **words: object) -> None:
        super().__init__(str(words.get("detail") or words))
        self.code, self.words = code, words


class NotSent(ProxyError):
    """The engine has no request: it may be sent to another one."""


class Failed(ProxyError):
    """The engine may have the request: it may be sent nowhere else."""


def connect_session() -> aiohttp.ClientSession:
    """For forward(): as many connections as there are requests, and nothing done to what passes. One for all
    engines; to be closed."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_NOT_ADDED,
        read_bufsize=BUFFER_BYTES,
        trust_env=False,
    )


async def forward(
    session: aiohttp.ClientSession,
    request: web.Request,
    body: bytes | bytearray,
    url: str,
    limits: Limits,
    *,
    request_id: str,
    headers: Mapping[str, str | None] | None = None,
) -> Forwarded:
    """Asks `url` what `request`, whose body has been read, asks, and answers it. `headers` replace the
    client's of these names; None: the engine gets none. NotSent, Failed: nothing has been answered.
    CancelledError: the client has gone. What is returned has been answered, in part or in whole, and its
    `response` is what the handler returns."""
    loop = asyncio.get_running_loop()
    payload = _Body(body, limits.idle)
    try:
        target = URL(url, encoded=True)
    except ValueError as fault:
        raise NotSent("engine_unreachable", url=url, detail=str(fault)) from None
    try:
        upstream = await session.request(
            request.method,
            target,
            data=payload if body else None,
            headers=_request_headers(request, {**(headers or {}), REQUEST_ID: request_id}),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=limits.connect, sock_connect=limits.connect, sock_read=limits.idle
            ),
        )
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as fault:
        raise _no_answer(fault, url, payload, limits) from fault
    try:
        if upstream.status < 200:
            # Another protocol, to which nobody has asked it to switch.
            raise Failed("engine_broke_off", url=url, detail=f"it answered {upstream.status}")
        headers = _passed(upstream.headers.items(), _HOP_BY_HOP, {REQUEST_ID: request_id})
        if any(_CONTROL.search(text) for text in (upstream.reason or "", *headers.values())):
            raise Failed("engine_broke_off", url=url, detail="its answer's head has control characters")
        response = Answer(status=upstream.status, reason=upstream.reason, headers=headers)
        if request.version < HttpVersion11:
            response.force_close()  # the end of the connection may be the only one that the answer has
        done = Forwarded(response, upstream.status, loop.time())
        try:
            with _Stall(loop, request, limits.idle) as stall:
                await response.prepare(request)
                await _pass_on(upstream, done, stall)
        except ConnectionError:
            done.gone, done.broken = True, "the client has gone"
        if done.broken:
            response.break_off()
        return done
    finally:
        # Ends the connection, and with it the engine's work, unless the answer is complete.
        upstream.close()


async def _pass_on(upstream: aiohttp.ClientResponse, done: Forwarded, stall: _Stall) -> None:
    while True:
        try:
            chunk = await upstream.content.readany()
        except asyncio.TimeoutError:
            done.broken = "the engine fell silent in the middle of its answer"
            return
        except (aiohttp.ClientError, OSError) as fault:
            done.broken = f"the engine broke off in the middle of its answer: {_sentence(fault)}"
            return
        if not chunk:
            break
        stall.begin()
        await done.response.write(chunk)
        stall.end()
        done.n_bytes += len(chunk)
    stall.begin()
    await done.response.write_eof()
    done.complete = True


class Answer(web.StreamResponse):
    """One that can end without being complete."""

    _broken = False

    def break_off(self) -> None:
        """What has been written arrives, and then the connection ends, short of the length or the last chunk
        that was promised: HTTP's only way to say that this is not all. aiohttp ends it when the handler has
        returned, so that the handler isn't cancelled by this."""
        self._broken = True
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        if not self._broken:
            await super().write_eof(data)


class _Body(Payload):
    """A request's body, which knows whether any of it has been given to a connection."""

    def __init__(self, value: bytes | bytearray, idle: float) -> None:
        super().__init__(value, content_type="application/octet-stream")
        self._size = len(value)
        self._idle = idle
        self.begun = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        transport = getattr(writer, "transport", None)
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the connection had ended before the request was sent")
        self.begun = True
        view = memoryview(self._value)
        await writer.write(bytes(view[:BUFFER_BYTES]))
        # The client's own limit for silence begins when all is written.
        for start in range(BUFFER_BYTES, len(view), BUFFER_BYTES):
            await asyncio.wait_for(writer.write(bytes(view[start : start + BUFFER_BYTES])), self._idle)


class _Stall:
    """A client that takes nothing for too long is cut off: its connection is reset, which cancels the
    handler. One timer per answer, that is set again only when it is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: web.Request, limit: float) -> None:
        self._loop, self._request, self._limit = loop, request, limit
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> _Stall:
        self._timer = self._loop.call_later(self._limit, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def begin(self) -> None:
        self._since = self._loop.time()

    def end(self) -> None:
        self._since = None

    def _look(self) -> None:
        now = self._loop.time()
        if self._since is not None and now - self._since >= self._limit:
            if self._request.transport is not None:
                self._request.transport.abort()
            return
        due = (now if self._since is None else self._since) + self._limit
        self._timer = self._loop.call_at(due, self._look)


def _no_answer(fault: BaseException, url: str, payload: _Body, limits: Limits) -> ProxyError:
    detail = _sentence(fault)
    if not payload.begun and (payload.size or _never_connected(fault)):
        return NotSent("engine_unreachable", url=url, detail=detail)
    if isinstance(fault, asyncio.TimeoutError):
        return Failed("engine_timeout", url=url, seconds=f"{limits.idle:g}")
    return Failed("engine_broke_off", url=url, detail=detail)


def _never_connected(fault: BaseException) -> bool:
    kinds: tuple[type[BaseException], ...] = (aiohttp.ClientConnectorError, aiohttp.InvalidURL, ssl.SSLError)
    late = getattr(aiohttp, "ConnectionTimeoutError", None)
    return isinstance(fault, kinds if late is None else (*kinds, late))


def _sentence(fault: BaseException) -> str:
    return str(fault) or type(fault).__name__


def _request_headers(request: web.Request, replaced: Mapping[str, str | None]) -> CIMultiDict[str]:
    return _passed(request.headers.items(), _OF_REQUESTS, replaced)


def _passed(
    headers: Iterable[tuple[str, str]], dropped: frozenset[str], replaced: Mapping[str, str | None]
) -> CIMultiDict[str]:
    """In their order, each as often as it is there; without those that a Connection header names."""
    pairs = list(headers)
    listed = [value for key, value in pairs if key.lower() == "connection"]
    named = {name.strip().lower() for value in listed for name in value.split(",")}
    out = dropped | named | {name.lower() for name in replaced}
    found: CIMultiDict[str] = CIMultiDict()
    for key, value in pairs:
        if key.lower() not in out:
            found.add(key, value)
    for key, new in replaced.items():
        if new is not None:
            found.add(key, new)
    return found


__all__ = [
    "BUFFER_BYTES",
    "KEEP_ALIVE_S",
    "REQUEST_ID",
    "Answer",
    "Failed",
    "Forwarded",
    "Limits",
    "NotSent",
    "ProxyError",
    "connect_session",
    "forward",
]
