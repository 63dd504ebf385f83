# SPDX-License-Identifier: Apache-2.0
"""Clients' connections: how many there may be, and for how long one that asks for nothing.

aiohttp reads what they say, and bounds neither the time nor the size that a request's head takes. Here

- a head that isn't complete within Limits.head seconds of its beginning, the first one of the connection's,
  is waited for no longer, and one of more than HEAD_BYTES is not read to its end;
- who goes on to ask while he is being answered is read for no longer than HEAD_BYTES of it, until all that he
  has asked has been answered;
- who has not taken all of an answer Limits.idle seconds after it was made gets no more of it;
- there are at most so many connections, lest no descriptor be left to ask engines with. Where one is too
  many, the one that has asked for nothing the longest is ended, be it the new one. Nobody loses an answer by
  this.

What is no HTTP is refused as everything else is.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from kvcached.controller.metrics import Metrics

log = logging.getLogger("kvcached.controller")

FIELD_BYTES = 1 << 15
HEAD_BYTES = 1 << 16
KEEP_ALIVE_SECONDS = 3630.0  # longer than a proxy has a connection lie, so that it is not ended as it is used
ABORT_SECONDS = 10.0  # for a last word to be taken
BACKLOG = 1024
OTHERS = 256  # descriptors that are no user's: administrators', probes of engines, daemons, files

# Says no to who has not made a request: the code of an error, where from, and its words.
Refuse = Callable[..., web.Response]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Limits:
    """Seconds. `head`: for a request's head to be complete. `idle`: for the rest of an answer to be taken."""

    head: float
    idle: float


def needed(most: int) -> int:
    """Descriptors for so many connections: each is asked for another one, to an engine."""
    return 2 * most + BACKLOG + OTHERS


def share(n_descriptors: int, most: int) -> tuple[int, int]:
    """How many connections there may be, `most` at most, and how many that nobody has accepted."""
    backlog = max(16, min(BACKLOG, n_descriptors // 8))
    return min(most, max(8, (n_descriptors - backlog - OTHERS) // 2)), backlog


def raise_limit(most: int) -> int:
    """Of this process's descriptors, as far as it may; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed(most) if hard == resource.RLIM_INFINITY else min(needed(most), hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft
        return wanted
    return soft


class Port:
    """One that is listened at. `limits` is asked whenever a time begins."""

    def __init__(
        self,
        name: str,
        server: web.Server,
        most: int,
        limits: Callable[[], Limits],
        refuse: Refuse,
        metrics: Metrics,
    ) -> None:
        """server: an application's, which is changed so that connections know when they are asked."""
        self.loop = asyncio.get_running_loop()
        self.limits, self.refuse = limits, refuse
        self._server, self._most = server, most
        self._handle: Handler = server.request_handler
        server.request_handler = self._answer
        self._all: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # for a request; who has waited longest is first
        self._crowded = False
        self._count = metrics.connections.labels(name)
        self._ended = metrics.connections_ended

    def connect(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self, self._server)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(Connection, request.protocol)
        connection.asked(request)
        try:
            response = await self._handle(request)
        except web.HTTPExpectationFailed as fault:
            response = self.refuse("invalid_http", request.remote, detail=fault.text)
        finally:
            connection.answered(request.content.is_eof())
        if not request.content.is_eof() and not response.prepared:
            response.force_close()
        return response

    @property
    def has_nothing(self) -> bool:
        """All that was said to anybody has been sent."""
        return all(connection.has_nothing for connection in self._all)

    # ---- What connections tell ----

    def made(self, connection: Connection) -> None:
        self._all.add(connection)
        self._waiting[connection] = None
        self._count.inc()
        if len(self._all) > self._most:
            self._make_way()

    def lost(self, connection: Connection) -> None:
        if connection in self._all:
            self._all.remove(connection)
            self._waiting.pop(connection, None)
            self._count.dec()
        self._crowded = self._crowded and len(self._all) > self._most - self._most // 8

    def waits(self, connection: Connection, waits: bool) -> None:
        self._waiting.pop(connection, None)
        if waits and connection in self._all:
            self._waiting[connection] = None

    def ended(self, why: str) -> None:
        self._ended.labels(why).inc()

    def _make_way(self) -> None:
        if not self._crowded:
            self._crowded = True
            log.warning("All %d connections are taken: who asks for nothing the longest is ended", self._most)
        connection = next((one for one in self._waiting if one.has_nothing), None)
        if connection:
            self.lost(connection)
            connection.abort("crowded")


class Connection(web.RequestHandler):
    """A client's. Between two requests it waits for a head."""

    def __init__(self, port: Port, server: web.Server) -> None:
        super().__init__(
            server,
            loop=port.loop,
            access_log=cast(Any, None),
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            max_line_size=FIELD_BYTES,
            max_field_size=FIELD_BYTES,
        )
        self._port = port
        self._own_transport: asyncio.Transport | None = None  # also when aiohttp has let go of it
        self._n_bytes = 0  # of a head that isn't complete
        self._n_ahead = 0  # that came after a request, and before its answer
        self._n_answered = 0
        self._fresh = True
        self._request: web.BaseRequest | None = None
        self._last = False  # no other request is waited for
        self._timer: asyncio.TimerHandle | None = None

    # ---- What the event loop tells ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._own_transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        self._time(self._port.limits().head, self._no_head)
        self._port.made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._time(None)
        self._own_transport = None
        self._port.lost(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._waits_for_head():
            behind = self._request is not None and self._request.content.is_eof()
            super().data_received(data)
            self._look_at_body()
            if behind and data:
                self._come_ahead(len(data))
            return
        if data and not self._n_bytes and not self._fresh:
            self._time(self._port.limits().head, self._no_head)
        room = HEAD_BYTES - self._n_bytes
        super().data_received(data[:room])
        if not self._waits_for_head():
            self._n_bytes = 0
            if len(data) > room:
                super().data_received(data[room:])
        elif len(data) > room:
            self._refuse("head_too_large", part="The request's head", limit=HEAD_BYTES)
        else:
            self._n_bytes += len(data)

    # ---- What aiohttp tells ----

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """An answer to what is no request, or to one that a fault has prevented from being answered."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client has gone
        if request.writer.output_size > 0:
            raise ConnectionError("a part of an answer is sent, and cannot be followed by another one")
        self._end_of_requests()
        if status >= 500:
            log.error("A request failed", exc_info=exc)
            return self._port.refuse("internal_error", request.remote)
        if isinstance(exc, LineTooLong):
            part = "A line of the request's head"
            return self._port.refuse("head_too_large", request.remote, part=part, limit=FIELD_BYTES)
        return self._port.refuse("invalid_http", request.remote, detail=_first_line(message))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Of a body that is not what its headers say, the client has been told."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    # ---- What the port tells ----

    def asked(self, request: web.BaseRequest) -> None:
        self._fresh, self._request = False, request
        if not request.content.is_eof():
            self._go_on_reading()
        self._time(None)
        self._port.waits(self, False)
        self._look_at_body()

    def answered(self, whole: bool) -> None:
        """Nothing of the answer need have been sent yet. whole: the request's body was there; else aiohttp
        reads what comes of it for a moment, and ends the connection."""
        self._n_answered += 1
        self._request = None
        if not whole:
            self._end_of_requests()
            return
        self._time(self._port.limits().idle, self._not_taken)
        if self._waits_for_head():
            self._port.waits(self, True)
            if self._n_ahead:
                # A part of a head may be there, of which nobody knows.
                self._time(self._port.limits().head, self._no_head)
            self._go_on_reading()

    @property
    def has_nothing(self) -> bool:
        """All that was said to it has been sent."""
        transport = self._own_transport
        return transport is None or transport.get_write_buffer_size() == 0

    def abort(self, why: str) -> None:
        if self._own_transport is not None:
            self._port.ended(why)
            self._own_transport.abort()

    # ---- Itself ----

    def _waits_for_head(self) -> bool:
        """False also where aiohttp doesn't count what it has parsed: then time alone is bounded."""
        return not self._last and getattr(self, "_request_count", None) == self._n_answered

    def _come_ahead(self, n_bytes: int) -> None:
        self._n_ahead += n_bytes
        if self._n_ahead > HEAD_BYTES and self._own_transport is not None:
            self._own_transport.pause_reading()

    def _go_on_reading(self) -> None:
        """Where aiohttp has its own reasons not to, it will see to it."""
        paused, self._n_ahead = self._n_ahead > HEAD_BYTES, 0
        theirs = getattr(self, "_reading_paused", False) or getattr(self, "_buffer_paused", False)
        if paused and not theirs and self._own_transport is not None:
            self._own_transport.resume_reading()

    def _look_at_body(self) -> None:
        """Where it turns out to be no HTTP, aiohttp says so after the request, whose reader waits for the
        rest."""
        request, n_parsed = self._request, getattr(self, "_request_count", 0)
        if request and not request.content.is_eof() and n_parsed > self._n_answered + 1:
            request.content.set_exception(web.RequestPayloadError())

    def _end_of_requests(self) -> None:
        self._last = True
        self._port.waits(self, False)
        self._time(self._port.limits().idle, self._not_taken)

    def _no_head(self) -> None:
        if self._n_bytes:
            self._refuse("head_timeout")
        elif self._n_answered and not self.has_nothing:
            self._time(self._port.limits().idle, self._not_taken)
        else:
            self.abort("silent")

    def _refuse(self, code: str, **words: object) -> None:
        """As aiohttp would say it, if it knew."""
        transport = self._own_transport
        if transport is None:
            return
        peer = transport.get_extra_info("peername")
        response = self._port.refuse(code, peer[0] if peer else None, **words)
        self._last = True
        self._port.waits(self, False)
        self._time(ABORT_SECONDS, self._not_taken)
        transport.write(_as_bytes(response))
        self.force_close()

    def _not_taken(self) -> None:
        if not self.has_nothing:
            self.abort("stalled")

    def _time(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        """One at a time, and none of a connection that has been lost, lest it be kept until then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and then is not None and self._own_transport is not None:
            self._timer = self._port.loop.call_later(seconds, then)


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0].rstrip(":")[:200] or "it cannot be read"


def _as_bytes(response: web.Response) -> bytes:
    """For a connection that ends with it."""
    body = cast(bytes, response.body)
    headers = [*response.headers.items(), ("Content-Length", str(len(body))), ("Connection", "close")]
    status = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"
    lines = [status, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
